import inspect
import json
import os
import shutil
import sys
import textwrap

from command_line import cli

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny_vocab import ENGLISH, tiktoken_encoding, tiny_bpe, write_vocab

import encoder
from create_model import create_model, learn_vocabulary
from encoder import get_encoder
from errors import InputError
from storage import vocabulary_files

TOY = {'n_layer': 2, 'n_head': 4, 'n_embd': 32, 'n_ctx': 64}
SHAPES = {  # of TOY with the 257 tokens of bytes and <|endoftext|>
    'model/wte': [257, 32], 'model/wpe': [64, 32], 'model/ln_f/g': [32], 'model/ln_f/b': [32],
    'model/h0/ln_1/g': [32], 'model/h0/ln_1/b': [32], 'model/h0/ln_2/g': [32], 'model/h0/ln_2/b': [32],
    'model/h0/attn/c_attn/w': [1, 32, 96], 'model/h0/attn/c_attn/b': [96],
    'model/h0/attn/c_proj/w': [1, 32, 32], 'model/h0/attn/c_proj/b': [32],
    'model/h0/mlp/c_fc/w': [1, 32, 128], 'model/h0/mlp/c_fc/b': [128],
    'model/h0/mlp/c_proj/w': [1, 128, 32], 'model/h0/mlp/c_proj/b': [32],
    'model/h1/ln_1/g': [32], 'model/h1/ln_1/b': [32], 'model/h1/ln_2/g': [32], 'model/h1/ln_2/b': [32],
    'model/h1/attn/c_attn/w': [1, 32, 96], 'model/h1/attn/c_attn/b': [96],
    'model/h1/attn/c_proj/w': [1, 32, 32], 'model/h1/attn/c_proj/b': [32],
    'model/h1/mlp/c_fc/w': [1, 32, 128], 'model/h1/mlp/c_fc/b': [128],
    'model/h1/mlp/c_proj/w': [1, 128, 32], 'model/h1/mlp/c_proj/b': [32],
}
FILES = ['checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001', 'model.ckpt.index',
         'model.ckpt.meta', 'vocab.bpe']


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A folder with `toy`, made by create_model, and `words`, the vocabulary of a model."""
    models = tmp_path_factory.mktemp('models')
    create_model('toy', **TOY, models_dir=str(models), seed=1)
    write_vocab(models / 'words')
    return models


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    """The weights of a model that is wide enough for its statistics to be told apart."""
    models = tmp_path_factory.mktemp('wide')
    create_model('wide', n_layer=3, n_head=2, n_embd=192, n_ctx=128, models_dir=str(models), seed=1)
    return weights(models / 'wide')


def weights(directory):
    reader = tf.train.load_checkpoint(str(directory))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def listing(folder):
    return sorted(os.listdir(folder))


# What is made

def test_the_files_are_those_of_a_released_model(models):
    assert listing(models / 'toy') == FILES


def test_nothing_else_is_left_beside_the_model(models):
    assert [name for name in listing(models) if name.startswith('.') or 'toy' in name] == ['toy']


def test_others_may_read_the_model(models):
    assert os.stat(models / 'toy').st_mode & 0o777 == 0o777 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_hparams_hold_the_five_sizes(models):
    with open(models / 'toy' / 'hparams.json') as file:
        assert json.load(file) == {'n_vocab': 257, 'n_ctx': 64, 'n_embd': 32, 'n_head': 4, 'n_layer': 2}


def test_the_checkpoint_file_names_the_checkpoint_beside_it(models):
    state = tf.train.get_checkpoint_state(str(models / 'toy'))
    assert state.model_checkpoint_path == str(models / 'toy' / 'model.ckpt')
    assert str(models) not in (models / 'toy' / 'checkpoint').read_text()


def test_variables_have_the_names_shapes_and_type_of_released_ones(models):
    reader = tf.train.load_checkpoint(str(models / 'toy'))
    assert reader.get_variable_to_shape_map() == SHAPES
    assert set(reader.get_variable_to_dtype_map().values()) == {tf.float32}


def test_the_number_of_parameters_is_told(tmp_path, capsys):
    create_model('toy', **TOY, models_dir=str(tmp_path))
    expected = sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert capsys.readouterr().out == f'Made {tmp_path}/toy: {expected:,} parameters\n'


def test_the_vocabulary_is_the_bytes_and_the_end_of_text(models):
    with open(models / 'toy' / 'encoder.json', encoding='utf-8') as file:
        vocabulary = json.load(file)
    assert sorted(vocabulary.values()) == list(range(257))
    assert vocabulary['<|endoftext|>'] == 256
    assert [vocabulary[symbol] for symbol in ('!', 'A', 'Ā', 'Ġ')] == [0, 32, 188, 220]  # as in GPT-2's own


@pytest.mark.parametrize('text', ['Hello, world', ' \n\t\0', 'häß 日本 🙂', '<|endoftext|>', ''])
def test_text_goes_there_and_back_a_token_a_byte(models, text):
    enc = get_encoder('toy', str(models))
    tokens = enc.encode(text)
    assert len(tokens) == len(text.encode())
    assert enc.decode(tokens) == text


# Initial weights: the paper's section 2.3, and the released code

@pytest.mark.parametrize('name, stddev', [
    ('wte', 0.02), ('wpe', 0.01), ('h0/attn/c_attn/w', 0.02), ('h2/mlp/c_fc/w', 0.02),
    ('h0/attn/c_proj/w', 0.02 / 6 ** 0.5), ('h2/mlp/c_proj/w', 0.02 / 6 ** 0.5)])
def test_matrices_are_normal_with_the_papers_deviation(wide, name, stddev):
    value = wide[f'model/{name}']
    assert np.std(value) == pytest.approx(stddev, rel=0.03)
    assert abs(np.mean(value)) < 0.03 * stddev
    assert np.mean(np.abs(value) < stddev) == pytest.approx(
        0.6827, abs=0.02
    )  # normal, not uniform or truncated


def test_gains_are_one_and_biases_zero(wide):
    for name, value in wide.items():
        if name.endswith(('/g', '/b')):
            np.testing.assert_array_equal(value, 1 if name.endswith('/g') else 0, err_msg=name)


def test_no_two_matrices_are_alike(wide):
    first = [value.flat[:3].tolist() for name, value in wide.items() if not name.endswith(('/g', '/b'))]
    assert len({tuple(each) for each in first}) == len(first) == 2 + 3 * 4


def test_the_same_seed_gives_the_same_weights(models, tmp_path):
    create_model('again', **TOY, models_dir=str(tmp_path), seed=1)
    first, second = weights(models / 'toy'), weights(tmp_path / 'again')
    assert all(np.array_equal(first[name], second[name]) for name in SHAPES)


@pytest.mark.parametrize('seed', [2, None])
def test_another_seed_or_none_gives_other_weights(models, tmp_path, seed):
    create_model('other', **TOY, models_dir=str(tmp_path), seed=seed)
    assert not np.array_equal(weights(models / 'toy')['model/wte'], weights(tmp_path / 'other')['model/wte'])


def test_without_a_seed_two_models_differ(tmp_path):
    for name in ('one', 'two'):
        create_model(name, n_layer=1, n_head=1, n_embd=8, n_ctx=8, models_dir=str(tmp_path))
    assert not np.array_equal(weights(tmp_path / 'one')['model/wte'], weights(tmp_path / 'two')['model/wte'])


def test_the_vocabulary_of_another_model_is_copied(models):
    create_model('wordy', **TOY, models_dir=str(models), vocab_from='words')
    vocabulary, _ = tiny_bpe()
    for name in ('encoder.json', 'vocab.bpe'):
        assert (models / 'wordy' / name).read_bytes() == (models / 'words' / name).read_bytes()
    assert listing(models / 'wordy') == FILES
    assert json.loads((models / 'wordy' / 'hparams.json').read_text())['n_vocab'] == len(vocabulary)
    assert weights(models / 'wordy')['model/wte'].shape == (len(vocabulary), 32)


def test_its_special_tokens_are_copied_too(models, tmp_path):
    shutil.copytree(models / 'words', tmp_path / 'words')
    (tmp_path / 'words' / 'special_tokens.json').write_text('{"tokens": ["x"], "end": "x"}')
    create_model('wordy', **TOY, models_dir=str(tmp_path), vocab_from='words')
    assert get_encoder('wordy', str(tmp_path)).eot == get_encoder('words', str(tmp_path)).encoder['x']


def test_the_models_folder_is_made(tmp_path):
    create_model('toy', n_layer=1, n_head=1, n_embd=8, n_ctx=8, models_dir=str(tmp_path / 'a' / 'b'))
    assert listing(tmp_path / 'a' / 'b') == ['toy']


@pytest.mark.parametrize('name, folder, character', [
    ('a[1]', '', '['), ('a', 'b[1]', '['), ('a*', '', '*'), ('a', 'b?', '?'), ('a\udcff', '', '\udcff')])
def test_a_model_that_could_not_be_read_is_not_made(tmp_path, name, folder, character):
    with pytest.raises(InputError) as raised:
        create_model(name, **TOY, models_dir=str(tmp_path / folder))
    assert f'has the character {character!r}, which TensorFlow cannot read' in str(raised.value)
    assert listing(tmp_path) == []


def test_a_model_is_made_and_read_below_a_folder_of_any_name(tmp_path, monkeypatch):
    (tmp_path / 'a[1]').mkdir()
    monkeypatch.chdir(tmp_path / 'a[1]')
    create_model('toy', **TOY, seed=1)
    assert weights('models/toy').keys() == SHAPES.keys()
    with pytest.raises(
        Exception, match='Failed to find any matching files'
    ):  # TensorFlow takes it for a pattern
        weights(tmp_path / 'a[1]' / 'models' / 'toy' / 'model.ckpt')


# A vocabulary of one's own

HELD_OUT = [
    "The keepers' lamps weren't trimmed, they'd said, on 12 November 1986.\n\n",
    '   \t\n  x ',
    '',
    'def wrapped(text):\n    """Ä"""',
    'häß 日本 🙂',
    'aaaaaaaaaaaaaaaaa',
    '<|endoftext|>',
    '\0\x7f\xad',
]


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    """A model `own` with a vocabulary of 600 learned from two files; also its encoder.json and its merges."""
    pytest.importorskip('tokenizers', reason='vocabularies are learned by the package tokenizers')
    folder = tmp_path_factory.mktemp('learned')
    (folder / 'text').mkdir()
    (folder / 'text' / 'a.txt').write_text(ENGLISH * 2)
    (folder / 'text' / 'b.txt').write_text(inspect.getsource(textwrap))
    create_model('own', **TOY, models_dir=str(folder), train_vocab=600, corpus=str(folder / 'text' / '*.txt'))
    return (folder, json.loads((folder / 'own' / 'encoder.json').read_text()),
            vocabulary_files.read_merges(folder / 'own' / 'vocab.bpe'))


def test_a_learned_vocabulary_is_the_bytes_the_merges_and_the_end_of_text(learned):
    folder, vocabulary, merges = learned
    assert sorted(vocabulary.values()) == list(range(600)) and vocabulary['<|endoftext|>'] == 599
    assert [vocabulary[symbol] for symbol in encoder.bytes_to_unicode().values()] == list(range(256))
    assert [vocabulary[first + second] for first, second in merges] == list(range(256, 599))
    assert listing(folder / 'own') == FILES
    assert weights(folder / 'own')['model/wte'].shape == (600, 32)


def test_ids_are_those_of_tokenizers_and_tiktoken(learned):
    folder, vocabulary, merges = learned
    import tokenizers
    reference = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(
        str(folder / 'own' / 'encoder.json'), str(folder / 'own' / 'vocab.bpe')))
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tiktoken, enc = tiktoken_encoding(vocabulary, merges), get_encoder('own', str(folder))
    for text in [*HELD_OUT, inspect.getsource(inspect)]:
        ids = enc.encode(text)
        assert ids == reference.encode(text).ids == tiktoken.encode_ordinary(text)
        assert enc.decode(ids) == text
    assert len(enc.encode(ENGLISH)) < len(ENGLISH) / 2


def test_the_pairs_that_occur_most_are_merged_first(learned, tmp_path):
    (tmp_path / 'text').write_text('xyxyxy xyxy zz zz')
    _, merges = learn_vocabulary(257 + 2, str(tmp_path / 'text'))
    assert merges == [['x', 'y'], ['xy', 'xy']]


def test_nothing_is_learned_from_the_ends_of_documents(learned, tmp_path):
    (tmp_path / 'text').write_text('xy<|endoftext|>xyxy<|endoftext|>' * 9)
    assert learn_vocabulary(257 + 2, str(tmp_path / 'text'))[1] == [['x', 'y'], ['xy', 'xy']]
    with pytest.raises(InputError, match='has pairs for --train_vocab 259 and no more'):
        learn_vocabulary(260, str(tmp_path / 'text'))


def test_a_corpus_is_read_in_its_encoding(learned, tmp_path):
    (tmp_path / 'text').write_bytes('ßß ßß'.encode('latin-1'))
    vocabulary, merges = learn_vocabulary(258, str(tmp_path / 'text'), 'latin-1')
    assert merges == [['Ã', 'Ł']] and vocabulary['ÃŁ'] == 256


def test_a_byte_order_mark_is_not_learned(learned, tmp_path):
    (tmp_path / 'text').write_bytes(
        '\ufeff\ufeff'.encode()
    )  # the first is a mark, and no pair of bytes comes twice
    with pytest.raises(InputError, match='has pairs for --train_vocab 257 and no more'):
        learn_vocabulary(258, str(tmp_path / 'text'))


def test_the_smallest_vocabulary_is_the_one_without_a_corpus(learned, tmp_path):
    create_model('bytes', n_layer=1, n_head=1, n_embd=8, n_ctx=8, models_dir=str(tmp_path), train_vocab=257,
                 corpus=str(learned[0] / 'text'))
    create_model('plain', n_layer=1, n_head=1, n_embd=8, n_ctx=8, models_dir=str(tmp_path))
    for name in ('encoder.json', 'vocab.bpe'):
        assert (tmp_path / 'bytes' / name).read_bytes() == (tmp_path / 'plain' / name).read_bytes()


@pytest.mark.parametrize(
    'flags, message',
    [
        ({'train_vocab': 2**24 + 1}, ' to 16,777,216, not 16777217'),
        ({'train_vocab': 256}, '--train_vocab must be 257'),
        ({'train_vocab': -1}, '--train_vocab must be 257'),
        ({'train_vocab': 50257}, 'has pairs for --train_vocab '),
        ({'corpus': '{}/none'}, 'nothing matches the path'),
        ({'corpus': '{}/empty'}, 'empty has pairs for --train_vocab 257 and no more'),
        ({'corpus': '{}/a.npz'}, 'not text'),
        ({'corpus': '{}/broken'}, 'broken: not utf-8 at byte 3'),
        ({'encoding': 'utf-99'}, 'utf-99'),
        ({'corpus': None}, '--train_vocab and --corpus belong together'),
        ({'train_vocab': None}, '--train_vocab and --corpus belong together'),
        ({'vocab_from': 'x'}, 'and not to --vocab_from'),
        ({'n_head': 3}, 'must be divisible by n_head'),
    ],
)
def test_a_vocabulary_that_cannot_be_learned_is_refused(learned, tmp_path, flags, message):
    for name, content in (
        ('text', ENGLISH.encode()),
        ('empty', b''),
        ('a.npz', b'PK\3\4'),
        ('broken', b'abc\xff'),
    ):
        (tmp_path / name).write_bytes(content)
    flags = {
        name: value.format(tmp_path) if isinstance(value, str) else value for name, value in flags.items()
    }
    assert message in refusal('own', **{**TOY, 'models_dir': str(tmp_path / 'models'), 'train_vocab': 300,
                                        'corpus': str(tmp_path / 'text'), **flags})
    assert not os.path.exists(tmp_path / 'models')


def test_without_tokenizers_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    (tmp_path / 'text').write_text(ENGLISH)
    said = refusal(
        'own', **TOY, models_dir=str(tmp_path / 'models'), train_vocab=300, corpus=str(tmp_path / 'text')
    )
    assert said == '--train_vocab needs the package tokenizers: pip install tokenizers'
    assert not os.path.exists(tmp_path / 'models')


# What is refused

def refusal(*args, **flags):
    with pytest.raises(InputError) as raised:
        create_model(*args, **flags)
    assert '\n' not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize('sizes, message', [
    ({'n_embd': 30}, 'n_embd (30) must be divisible by n_head (4)'),
    ({'n_head': 5}, 'n_embd (32) must be divisible by n_head (5)'),
    *(({name: value}, f'{name} must be a whole number from 1 to ')
      for name in ('n_layer', 'n_head', 'n_embd', 'n_ctx') for value in (0, -4)),
])
def test_sizes_that_make_no_model_are_refused_and_leave_nothing(tmp_path, sizes, message):
    assert message in refusal('toy', **{**TOY, **sizes}, models_dir=str(tmp_path))
    assert listing(tmp_path) == []


def test_after_a_refusal_not_even_the_models_folder_is_made(tmp_path):
    refusal('toy', **{**TOY, 'n_head': 5}, models_dir=str(tmp_path / 'models'))
    assert listing(tmp_path) == []


def test_an_existing_model_is_refused_and_kept(models):
    before = {name: (models / 'toy' / name).read_bytes() for name in FILES}
    assert refusal('toy', **TOY, models_dir=str(models)).startswith(f'{models}/toy exists already')
    assert {name: (models / 'toy' / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize('kind', ['file', 'empty folder'])
def test_anything_of_that_name_is_refused(tmp_path, kind):
    (tmp_path / 'toy').mkdir() if kind == 'empty folder' else (tmp_path / 'toy').write_text('mine')
    assert 'exists already' in refusal('toy', **TOY, models_dir=str(tmp_path))


@pytest.mark.parametrize('name', ['../toy', 'a/b', '', '.', '..', 'a\0b'])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    assert 'not a plain folder name' in refusal(name, **TOY, models_dir=str(tmp_path / 'models'))
    assert listing(tmp_path) == []


@pytest.mark.parametrize('vocab_from', ['absent', ''])
def test_a_vocabulary_that_is_not_there_is_refused(tmp_path, vocab_from):
    refusal('toy', **TOY, models_dir=str(tmp_path), vocab_from=vocab_from)
    assert listing(tmp_path) == []


def test_a_damaged_vocabulary_is_refused_by_its_own_path(tmp_path):
    write_vocab(tmp_path / 'words')
    (tmp_path / 'words' / 'encoder.json').write_text('{')
    assert refusal('toy', **TOY, models_dir=str(tmp_path), vocab_from='words').startswith(
        f'{tmp_path}/words/encoder.json is not JSON')
    assert listing(tmp_path) == ['words']


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    from storage import new_model

    def failing(directory, *_):
        with open(os.path.join(directory, 'model.ckpt.index'), 'w') as file:
            file.write('half')
        raise OSError(28, 'No space left on device', directory)
    monkeypatch.setattr(new_model, 'create', failing)
    with pytest.raises(OSError, match='No space'):
        create_model('toy', **TOY, models_dir=str(tmp_path))
    assert listing(tmp_path) == []


def test_from_the_command_line_a_mistake_is_one_line_and_status_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('sys.argv', ['create_model.py'])
    with pytest.raises(SystemExit) as stopped:
        cli.run(create_model, ['toy', '--models_dir', str(tmp_path), '--n_embd', '30'])
    assert stopped.value.code == 2
    assert capsys.readouterr() == ('', 'create_model.py: error: n_embd (30) must be divisible by n_head '
                                       '(12)\n')
