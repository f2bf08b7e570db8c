import contextlib
import itertools
import json
import math
import os
import random
import shutil
import weakref

import numpy as np
import numpy_gpt2
import pytest
import safetensors.numpy
import tensorflow.compat.v1 as tf
import toy
from tiny_vocab import ENGLISH, tiny_bpe

import encoder
import model
from convert import from_hf, to_hf
from errors import InputError
from formats import hugging_face
from generation import generator
from storage import checkpoint, new_model, paths

FILES = ['config.json', 'generation_config.json', 'merges.txt', 'model.safetensors', 'tokenizer_config.json',
         'vocab.json']
MODEL_FILES = sorted(paths.MODEL_FILES)
THEIRS = {  # ours: theirs, of the first layer and what is outside of all
    'wpe': 'wpe.weight', 'wte': 'wte.weight', 'ln_f/g': 'ln_f.weight', 'ln_f/b': 'ln_f.bias',
    'h0/ln_1/g': 'h.0.ln_1.weight', 'h0/ln_1/b': 'h.0.ln_1.bias',
    'h0/ln_2/g': 'h.0.ln_2.weight', 'h0/ln_2/b': 'h.0.ln_2.bias',
    'h0/attn/c_attn/w': 'h.0.attn.c_attn.weight', 'h0/attn/c_attn/b': 'h.0.attn.c_attn.bias',
    'h0/attn/c_proj/w': 'h.0.attn.c_proj.weight', 'h0/attn/c_proj/b': 'h.0.attn.c_proj.bias',
    'h0/mlp/c_fc/w': 'h.0.mlp.c_fc.weight', 'h0/mlp/c_fc/b': 'h.0.mlp.c_fc.bias',
    'h0/mlp/c_proj/w': 'h.0.mlp.c_proj.weight', 'h0/mlp/c_proj/b': 'h.0.mlp.c_proj.bias',
}
TEXTS = [ENGLISH, 'def f(x):\n    return "häß 日本 🙂"\t\n\n', "  it's 1987,  isn't it? ", 'x', ' ', '']


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A folder with models/toy, its weights and sizes, and hf, what to_hf makes of it."""
    home = tmp_path_factory.mktemp('home')
    hp = toy.hparams(n_vocab=len(tiny_bpe()[0]), n_ctx=96)
    values = toy.weights(hp, scale=0.2)
    # Numbers that only bits tell apart from others, or that arithmetic would not keep.
    values['model/h1/mlp/c_fc/b'][:3] = [-0.0, 1e-40, 1 / 3]
    values['model/wpe'] *= 10  # each place has a token of its own, so that no continuation is a loop
    toy.write_model(home / 'models' / 'toy', hp, values)
    to_hf('toy', str(home / 'hf'), models_dir=str(home / 'models'))
    return home, hp, values


@pytest.fixture
def folder(home, tmp_path):
    """A copy of hf, to be changed."""
    return shutil.copytree(home[0] / 'hf', tmp_path / 'hf')


def theirs(name):
    for layer in ('h0/', 'h1/'):
        if name.startswith(layer):
            return THEIRS[name.replace(layer, 'h0/')].replace('h.0.', f'h.{layer[1]}.')
    return THEIRS[name]


def tensors(values, prefix='transformer.', dtype=np.float32, transposed=False):
    """A checkpoint's variables as transformers has them."""
    return {prefix + theirs(name.removeprefix('model/')): np.ascontiguousarray(
        (value[0].T if transposed else value[0]) if value.ndim == 3 else value, dtype)
        for name, value in values.items()}


def weights(directory):
    reader = tf.train.load_checkpoint(str(directory))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert (value.shape, value.dtype) == (expected[name].shape, np.float32)
        np.testing.assert_array_equal(value.view(np.uint32), expected[name].view(np.uint32), err_msg=name)


def change(folder, name, **values):
    """Sets fields of a JSON file; None removes them."""
    with open(folder / name) as file:
        content = {**json.load(file), **values}
    (folder / name).write_text(json.dumps({key: value for key,
                                           value in content.items() if value is not None}))


def read_back(folder, tmp_path):  # -> {name: array}
    from_hf(str(folder), 'back', models_dir=str(tmp_path / 'models'))
    assert os.listdir(tmp_path / 'models') == ['back']
    return weights(tmp_path / 'models' / 'back')


def refusal(folder, tmp_path):
    with pytest.raises(InputError) as raised:
        from_hf(str(folder), 'back', models_dir=str(tmp_path / 'models'))
    assert '\n' not in str(raised.value)
    assert not os.path.exists(tmp_path / 'models')
    assert [name for name in os.listdir(tmp_path) if name.startswith('.')] == []
    return str(raised.value)


# What is written

def test_the_folder_holds_these_files_and_nothing_is_left_beside_it(home):
    assert sorted(os.listdir(home[0] / 'hf')) == FILES
    assert sorted(os.listdir(home[0])) == ['hf', 'models']


def test_tensors_are_the_checkpoints_in_the_spelling_of_transformers(home):
    found = safetensors.numpy.load_file(home[0] / 'hf' / 'model.safetensors')
    assert_bits(found, tensors(home[2]))
    with safetensors.safe_open(home[0] / 'hf' / 'model.safetensors', 'np') as file:
        assert file.metadata() == {'format': 'pt'}
    with open(home[0] / 'hf' / 'model.safetensors', 'rb') as file:
        assert int.from_bytes(file.read(8), 'little') % 8 == 0  # so that tensors are aligned


def test_config_says_what_readers_of_the_format_look_for(home):
    _, hp, _ = home
    config = json.loads((home[0] / 'hf' / 'config.json').read_text())
    eot = hp.n_vocab - 1
    assert config == {
        'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], 'vocab_size': hp.n_vocab,
        'n_positions': 96,
        'n_ctx': 96, 'n_embd': 32, 'n_head': 4, 'n_layer': 2, 'n_inner': None,
        'activation_function': 'gelu_new',
        'layer_norm_epsilon': 1e-5, 'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
        'add_cross_attention': False, 'tie_word_embeddings': True, 'bos_token_id': eot, 'eos_token_id': eot,
        'torch_dtype': 'float32'}
    assert json.loads((home[0] / 'hf' / 'generation_config.json').read_text()) == {'bos_token_id': eot,
                                                                                  'eos_token_id': eot}


def test_the_vocabulary_is_the_models_by_other_names(home):
    for ours, other in (('encoder.json', 'vocab.json'), ('vocab.bpe', 'merges.txt')):
        assert (home[0] / 'hf' / other).read_bytes() == (home[0] / 'models' / 'toy' / ours).read_bytes()


def test_a_vocabulary_without_an_end_of_text_has_none(home, tmp_path):
    directory = shutil.copytree(home[0] / 'models' / 'toy', tmp_path / 'models' / 'toy')
    change(directory, 'encoder.json', **{'<|endoftext|>': None})
    to_hf('toy', str(tmp_path / 'hf'), models_dir=str(tmp_path / 'models'))
    config = json.loads((tmp_path / 'hf' / 'tokenizer_config.json').read_text())
    assert [config[name] for name in ('bos_token', 'eos_token', 'unk_token')] == [None] * 3
    transformers = peer()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
    assert len(tokenizer) == home[1].n_vocab
    assert tokenizer(ENGLISH)['input_ids'] == encoder.get_encoder('toy',
                                                                  str(tmp_path / 'models')).encode(ENGLISH)


# What reads it

def peer():
    pytest.importorskip('torch', reason='make test-all compares with transformers')
    return pytest.importorskip('transformers', reason='make test-all compares with transformers')


@pytest.fixture(scope='module')
def continuation(home):
    """A prompt, and the 50 tokens with which our sampler goes on greedily."""
    gpt2 = generator.load('toy', str(home[0] / 'models'))
    prompt = gpt2.enc.encode('The keeper of the lighthouse')
    (row,) = gpt2.complete([prompt], [[1]], length=50, temperature=0)
    assert len(row.tokens) == 50 and len(set(row.tokens)) > 10
    return prompt, row.tokens


def test_transformers_continues_with_the_same_tokens(home, continuation):
    transformers, (prompt, expected) = peer(), continuation
    import torch
    gpt2 = transformers.AutoModelForCausalLM.from_pretrained(home[0] / 'hf')
    tokenizer = transformers.AutoTokenizer.from_pretrained(home[0] / 'hf')
    encoded = tokenizer('The keeper of the lighthouse', return_tensors='pt')
    assert encoded['input_ids'].tolist() == [prompt]
    drawn = gpt2.generate(**encoded, do_sample=False, max_new_tokens=50, pad_token_id=tokenizer.eos_token_id)
    assert drawn[0, len(prompt):].tolist() == expected
    with torch.no_grad():
        logits = gpt2.double()(torch.tensor([prompt + expected])).logits[0].numpy()
    np.testing.assert_allclose(logits, numpy_gpt2.logits(home[2], prompt + expected, home[1].n_head),
                               atol=1e-9)


def test_transformers_tokenizer_gives_the_same_ids(home):
    tokenizer = peer().AutoTokenizer.from_pretrained(home[0] / 'hf')
    enc = encoder.get_encoder('toy', str(home[0] / 'models'))
    assert len(tokenizer) == enc.n_vocab
    for text in TEXTS:
        assert tokenizer(text)['input_ids'] == enc.encode(text)
        assert tokenizer.decode(enc.encode(text)) == text
    assert tokenizer('a<|endoftext|>b')['input_ids'] == enc.encode('a<|endoftext|>b', allowed_special=True)
    assert (tokenizer.eos_token_id, tokenizer.model_max_length) == (enc.eot, 96)


def test_ctranslate2s_converter_takes_it(home, continuation, tmp_path):
    ctranslate2 = pytest.importorskip('ctranslate2', reason='make test-all converts for CTranslate2')
    peer()
    ctranslate2.converters.TransformersConverter(str(home[0] / 'hf')).convert(str(tmp_path / 'ct2'))
    prompt, expected = continuation
    symbols = encoder.get_encoder('toy', str(home[0] / 'models')).decoder
    (result,) = ctranslate2.Generator(str(tmp_path / 'ct2'), compute_type='float32').generate_batch(
        [[symbols[id] for id in prompt]], max_length=50, sampling_topk=1, include_prompt_in_result=False)
    assert result.sequences_ids[0] == expected


def test_a_model_with_ids_that_have_no_text_is_taken_and_comes_back(tmp_path):
    """By transformers, which does not draw them, and by CTranslate2, which wants a token for each row."""
    directory = tmp_path / 'all' / 'padded'
    hp, values = toy.write_padded_model(directory, n_ctx=96)
    to_hf('padded', str(tmp_path / 'hf'), models_dir=str(directory.parent))
    enc = encoder.get_encoder('padded', str(directory.parent))
    assert_bits(read_back(tmp_path / 'hf', tmp_path), values)
    for name in ('encoder.json', 'vocab.bpe', 'hparams.json'):
        assert (tmp_path / 'models' / 'back' / name).read_bytes() == (directory / name).read_bytes()
    transformers = peer()
    gpt2 = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf')
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
    assert len(tokenizer) == gpt2.config.vocab_size == hp.n_vocab
    for text in (*TEXTS, '<|unused260|>'):
        assert tokenizer(text)['input_ids'] == enc.encode(text)
    prompt = enc.encode('The keeper of the lighthouse')
    assert not enc.decoder.keys() >= set(numpy_gpt2.greedy(values, prompt, hp.n_head, 40))  # of all ids
    expected = generator.load('padded', str(directory.parent)).complete([prompt], [[1]], length=40,
                                                                        temperature=0)[0]
    drawn = gpt2.generate(**tokenizer('The keeper of the lighthouse', return_tensors='pt'), do_sample=False,
                          max_new_tokens=40, pad_token_id=enc.eot)
    assert drawn[0, len(prompt):].tolist() == expected.tokens
    ctranslate2 = pytest.importorskip('ctranslate2', reason='make test-all converts for CTranslate2')
    ctranslate2.converters.TransformersConverter(str(tmp_path / 'hf')).convert(str(tmp_path / 'ct2'))
    (result,) = ctranslate2.Generator(str(tmp_path / 'ct2'), compute_type='float32').generate_batch(
        [[enc.decoder[id] for id in prompt]], max_length=40, sampling_topk=1, include_prompt_in_result=False,
        suppress_sequences=[[f'<|unused{id}|>'] for id in range(hp.n_vocab) if id not in enc.decoder])
    assert result.sequences_ids[0] == expected.tokens


# There and back

def test_back_again_it_is_the_same_to_the_bit(home, tmp_path, capsys):
    directory, original = tmp_path / 'models' / 'back', home[0] / 'models' / 'toy'
    assert_bits(read_back(home[0] / 'hf', tmp_path), home[2])
    for name in ('encoder.json', 'vocab.bpe', 'hparams.json'):
        assert (directory / name).read_bytes() == (original / name).read_bytes()
    assert sorted(os.listdir(directory)) == MODEL_FILES
    assert tf.train.latest_checkpoint(str(directory)) == f'{directory}/model.ckpt'
    expected = sum(value.size for value in home[2].values())
    assert capsys.readouterr().out == f'Made {directory}: {expected:,} parameters\n'


def test_in_several_files_of_data_it_is_the_same(home, tmp_path, monkeypatch):
    monkeypatch.setattr(new_model, 'SHARD_BYTES', 20_000)
    assert_bits(read_back(home[0] / 'hf', tmp_path), home[2])
    names = os.listdir(tmp_path / 'models' / 'back')
    assert len([name for name in names if '.data-' in name]) > 4
    others = {name for name in names if '.data-' not in name}
    assert others == {name for name in MODEL_FILES if '.data-' not in name}
    prefix = checkpoint.resolve_path(str(tmp_path / 'models' / 'back'))
    with toy.session() as s:
        model.weights(home[1])
        checkpoint.restore(s, prefix, checkpoint.model_variables())
        tf.train.Saver().restore(s, prefix)


# Folders that others wrote

def test_what_transformers_saves_is_read(home, tmp_path):
    transformers = peer()
    gpt2 = transformers.AutoModelForCausalLM.from_pretrained(home[0] / 'hf')
    gpt2.save_pretrained(tmp_path / 'hf', max_shard_size='50KB')
    transformers.AutoTokenizer.from_pretrained(home[0] / 'hf').save_pretrained(tmp_path / 'hf')
    names = os.listdir(tmp_path / 'hf')
    assert 'model.safetensors.index.json' in names and 'tokenizer.json' in names and 'vocab.json' not in names
    assert_bits(read_back(tmp_path / 'hf', tmp_path), home[2])
    enc = encoder.get_encoder('back', str(tmp_path / 'models'))
    ours = encoder.get_encoder('toy', str(home[0] / 'models'))
    assert (enc.encoder, enc.eot) == (ours.encoder, ours.eot)
    assert [enc.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


@pytest.mark.parametrize('prefix, transposed', [
    ('', False), ('', True), ('transformer.', True), ('module.', False), ('module.transformer.', True),
    ('_orig_mod.transformer.', False)])
def test_names_and_layouts_found_in_the_wild_are_read(home, folder, tmp_path, prefix, transposed):
    found = tensors(home[2], prefix, transposed=transposed)
    for layer in range(2):
        found[f'{prefix}h.{layer}.attn.bias'] = np.tril(np.ones([1, 1, 96, 96], np.float32))
        found[f'{prefix}h.{layer}.attn.masked_bias'] = np.array(-1e4, np.float32)
    found[prefix.removesuffix('transformer.') + 'lm_head.weight'] = home[2]['model/wte']
    safetensors.numpy.save_file(found, folder / 'model.safetensors')
    assert_bits(read_back(folder, tmp_path), home[2])


@pytest.mark.parametrize('dtype', [np.float16, tf.bfloat16.as_numpy_dtype])
def test_half_precision_is_widened_exactly(home, folder, tmp_path, dtype):
    safetensors.numpy.save_file(tensors(home[2], dtype=dtype), folder / 'model.safetensors')
    assert_bits(read_back(folder, tmp_path), {name: value.astype(dtype).astype(np.float32)
                                              for name, value in home[2].items()})


def test_a_file_for_each_few_tensors(home, folder, tmp_path):
    shard(folder, tensors(home[2]))
    assert_bits(read_back(folder, tmp_path), home[2])


def shard(folder, found):
    os.unlink(folder / 'model.safetensors')
    where = {name: f'model-{number % 3 + 1:05d}-of-00003.safetensors' for number, name in enumerate(found)}
    for path in set(where.values()):
        safetensors.numpy.save_file({name: found[name] for name in found if where[name] == path},
                                    folder / path)
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': where}))


@pytest.mark.parametrize('sizes', [{'n_layer': 1, 'n_embd': 24, 'n_head': 3, 'n_ctx': 7},
                                   {'n_layer': 3, 'n_head': 1},
                                   {'n_embd': 8, 'n_head': 8}])
def test_other_sizes_go_there_and_back(tmp_path, sizes):
    _, values = toy.write_model(tmp_path / 'all' / 'odd', toy.hparams(n_vocab=len(tiny_bpe()[0]), **sizes))
    to_hf('odd', str(tmp_path / 'hf'), models_dir=str(tmp_path / 'all'))
    assert_bits(read_back(tmp_path / 'hf', tmp_path), values)


def test_an_embedding_may_be_larger_than_the_vocabulary(home, folder, tmp_path):
    values = {**home[2], 'model/wte': np.concatenate([home[2]['model/wte'], np.ones([7, 32], np.float32)])}
    safetensors.numpy.save_file(tensors(values), folder / 'model.safetensors')
    change(folder, 'config.json', vocab_size=home[1].n_vocab + 7)
    assert_bits(read_back(folder, tmp_path), values)
    generator.load('back', str(tmp_path / 'models'))


@pytest.mark.parametrize('form', ['added_tokens.json', 'pairs', 'lines'])
def test_tokens_that_were_added_are_kept(home, folder, tmp_path, form):
    symbols, merges = tiny_bpe()
    if form == 'added_tokens.json':
        (folder / form).write_text(json.dumps({'[PAD]': len(symbols)}))
    else:
        (folder / 'tokenizer.json').write_text(json.dumps(tokenizer_json(
            symbols, [' '.join(pair) for pair in merges] if form == 'lines' else merges, '[PAD]')))
        os.unlink(folder / 'vocab.json')
    values = {**home[2], 'model/wte': np.concatenate([home[2]['model/wte'], np.ones([1, 32], np.float32)])}
    safetensors.numpy.save_file(tensors(values), folder / 'model.safetensors')
    change(folder, 'config.json', vocab_size=home[1].n_vocab + 1)
    read_back(folder, tmp_path)
    enc = encoder.get_encoder('back', str(tmp_path / 'models'))
    assert enc.encode(ENGLISH) == encoder.get_encoder('toy', str(home[0] / 'models')).encode(ENGLISH)
    assert enc.decode([len(symbols)]) == '[PAD]'


# Special tokens

ADDED = {'</s>': 557, '<speaker1>': 558, '<|a é|>': 559, '[PAD]': 560}
CHAT = '<speaker1> Hello</s>\n<|a é|>x [PAD]<speaker1<|endoftext|></s> é'


@pytest.fixture(params=['slow', 'fast'])
def added(request, home, folder):
    """A folder of a model with ADDED tokens and `</s>` as its end, in either of their forms."""
    symbols, merges = map(json.loads, map(json.dumps, tiny_bpe()))
    rest = np.ones([563 - len(symbols), 32], np.float32)
    values = {**home[2], 'model/wte': np.concatenate([home[2]['model/wte'], rest])}
    safetensors.numpy.save_file(tensors(values), folder / 'model.safetensors')
    change(folder, 'config.json', vocab_size=563, eos_token_id=557, bos_token_id=557)
    os.unlink(folder / 'tokenizer_config.json')
    if request.param == 'slow':
        (folder / 'vocab.json').write_text(json.dumps({**symbols, '</s>': 557}))
        (folder / 'added_tokens.json').write_text(json.dumps(dict(list(ADDED.items())[1:])))
    else:
        os.unlink(folder / 'vocab.json')
        content = tokenizer_json(symbols, merges)
        ways = dict.fromkeys(['lstrip', 'rstrip', 'single_word', 'normalized'], False)
        content['added_tokens'] = [{'id': id, 'content': text, 'special': True, **ways}
                                   for text, id in ADDED.items()]
        (folder / 'tokenizer.json').write_text(json.dumps(content))
    (folder / 'special_tokens_map.json').write_text(json.dumps({
        'eos_token': '</s>', 'bos_token': {'content': '</s>', 'lstrip': False}, 'unk_token': '</s>',
        'pad_token': None, 'additional_special_tokens': ['<speaker1>', '<|a é|>']}))
    return folder


def test_added_tokens_and_the_end_of_a_text_are_kept(added, tmp_path):
    read_back(added, tmp_path)
    enc = encoder.get_encoder('back', str(tmp_path / 'models'))
    plain = encoder.Encoder(*tiny_bpe())
    assert (enc.special, enc.eot, enc.n_vocab) == (ADDED, 557, 561)
    assert enc.encode(CHAT) == plain.encode(CHAT)
    assert enc.encode(CHAT, allowed_special=True) == [
        558, *plain.encode(' Hello'), 557, *plain.encode('\n'), 559, *plain.encode('x '), 560,
        *plain.encode('<speaker1<|endoftext|>'), 557, *plain.encode(' é')]
    assert enc.decode(enc.encode(CHAT, allowed_special=True)) == CHAT


def test_transformers_gives_the_ids_of_added_tokens_before_and_after(added, tmp_path):
    transformers = peer()
    theirs = transformers.AutoTokenizer.from_pretrained(added)
    read_back(added, tmp_path)
    to_hf('back', str(tmp_path / 'again'), models_dir=str(tmp_path / 'models'))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'again')
    enc = encoder.get_encoder('back', str(tmp_path / 'models'))
    texts = [CHAT, *TEXTS, *ADDED, ''.join(ADDED), '<speaker1><speaker1>', '<|endoftext|>', ' </s> ', '<|a é']
    for text in texts:
        expected = enc.encode(text, allowed_special=True)
        assert tokenizer(text)['input_ids'] == expected
        assert tokenizer.decode(expected) == text
        assert theirs(text)['input_ids'] == expected
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.bos_token_id) == ('</s>', 557, 557)
    gpt2 = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'again')
    assert (gpt2.config.eos_token_id, gpt2.generation_config.eos_token_id) == (557, 557)
    tokenizer.save_pretrained(tmp_path / 'saved')  # and what they make of it is read, too
    gpt2.save_pretrained(tmp_path / 'saved')
    from_hf(str(tmp_path / 'saved'), 'third', models_dir=str(tmp_path / 'models'))
    third = encoder.get_encoder('third', str(tmp_path / 'models'))
    assert (third.special, third.eot, third.encoder) == (enc.special, enc.eot, enc.encoder)


@pytest.mark.parametrize(
    'config, names, end',
    [
        ({'eos_token_id': 300}, {'eos_token': '[PAD]'}, '[PAD]'),  # an ordinary piece of text
        ({'eos_token_id': 50256}, {'eos_token': {'content': '[PAD]'}}, '[PAD]'),
        ({'eos_token_id': [557, 3]}, {'eos_token': '[PAD]'}, '[PAD]'),
        ({'eos_token_id': None}, {'eos_token': '[PAD]'}, '[PAD]'),
        ({'eos_token_id': '557'}, {}, '<|endoftext|>'),
        ({}, {'eos_token': '[PAD]'}, '<|endoftext|>'),
        ({'eos_token_id': True}, {'eos_token': 'absent'}, '<|endoftext|>'),
    ],
)
def test_which_token_ends_a_text(home, folder, tmp_path, config, names, end):
    symbols, merges = tiny_bpe()
    assert ''.join(merges[300 - 256]) == list(symbols)[300]
    values = {**home[2], 'model/wte': np.concatenate([home[2]['model/wte'], np.ones([1, 32], np.float32)])}
    safetensors.numpy.save_file(tensors(values), folder / 'model.safetensors')
    change(folder, 'config.json', vocab_size=558, **config)
    change(folder, 'tokenizer_config.json', **names)
    (folder / 'added_tokens.json').write_text('{"[PAD]": 557}')
    read_back(folder, tmp_path)
    enc = encoder.get_encoder('back', str(tmp_path / 'models'))
    assert enc.decode([enc.eot]) == end and enc.special['[PAD]'] == 557


def test_special_tokens_of_both_files_count_and_no_other_field_names_any(folder, tmp_path):
    (folder / 'special_tokens_map.json').write_text('{"additional_special_tokens": ["e"]}')
    change(folder, 'tokenizer_config.json', extra_special_tokens={'x': 't'}, image_token='a')
    read_back(folder, tmp_path)
    enc = encoder.get_encoder('back', str(tmp_path / 'models'))
    assert sorted(enc.special) == ['<|endoftext|>', 'e', 't']


@pytest.mark.parametrize('name, content, message', [
    ('tokenizer_config.json', {'add_prefix_space': True}, 'add_prefix_space must be false or empty'),
    ('special_tokens_map.json', {'add_prefix_space': True}, 'add_prefix_space must be false or empty'),
    ('special_tokens_map.json', {'mask_token': {'content': '<mask>', 'lstrip': True}},
     'lstrip must be false or empty'),
    ('tokenizer_config.json', {'eos_token': 7}, "a special token must be a text, not '7'"),
    ('tokenizer_config.json', {'eos_token': {'lstrip': False}}, "must be a text, not 'False'"),
    ('special_tokens_map.json', {'pad_token': ''}, 'must be a text'),
    ('special_tokens_map.json', {'additional_special_tokens': [['<a>']]}, 'a special token must be a text'),
    ('tokenizer_config.json', {'added_tokens_decoder': {'5': {'special': True}}}, 'must be a text'),
    ('tokenizer_config.json', {'added_tokens_decoder': {'5': {'content': 'x', 'rstrip': True}}},
     'rstrip must be false or empty'),
    ('added_tokens.json', {'': 557}, "a special token must be a text, not ''"),
    ('added_tokens.json', {'x y': [1]}, "gives 'x y' the id '[1]'"),
    ('added_tokens.json', {'é': 165}, "'é' can be no special token: it stands for other bytes"),
    ('added_tokens.json', {'x y': 600}, 'has ids up to 600, but vocab_size in config.json is 557'),
    ('added_tokens.json', {'x y': 5}, "the id '5', expected a whole number of its own")])
def test_special_tokens_that_cannot_be_read_are_refused(folder, tmp_path, name, content, message):
    (folder / name).write_text(json.dumps(content))
    assert message in refusal(folder, tmp_path)


def tokenizer_json(symbols, merges, *added):
    return {'added_tokens': [{'id': len(symbols) + i, 'content': each} for i, each in enumerate(added)],
            'normalizer': None,
            'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True},
            'model': {'type': 'BPE', 'vocab': symbols, 'merges': merges}}


# What is refused

@pytest.mark.parametrize('fields, message', [
    ({'model_type': 'llama'}, "model_type must be one of ('gpt2',), not llama"),
    ({'model_type': None}, "model_type must be one of ('gpt2',), not None"),
    ({'tie_word_embeddings': False}, "has 1 tensors too many or too few"),
    ({'activation_function': 'relu'}, "must be one of ('gelu_new', 'gelu_pytorch_tanh'), not relu"),
    ({'layer_norm_epsilon': 1e-6}, 'layer_norm_epsilon must be one of (1e-05,), not 1e-06'),
    ({'scale_attn_weights': False}, 'scale_attn_weights must be'),
    ({'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx must be'),
    ({'add_cross_attention': True}, 'add_cross_attention must be'),
    ({'n_inner': 64}, 'n_inner must be one of (None, 128), not 64'),
    ({'quantization_config': {'bits': 4}}, "quantization_config must be one of (None,), not {'bits': 4}"),
    ({'n_embd': None, 'n_head': None}, 'n_embd must be a whole number'),
    ({'n_layer': '2'}, 'n_layer must be a whole number'),
    ({'n_head': 5}, 'n_embd (32) must be divisible by n_head (5)'),
    ({'n_embd': 64}, 'wpe.weight is F32 [96, 32], but must be F32, F16 or BF16 [96, 64]'),
    ({'n_positions': 97}, 'wpe.weight is F32 [96, 32], but must be F32, F16 or BF16 [97, 32]'),
    ({'vocab_size': 600}, 'wte.weight is F32'), ({'vocab_size': 300}, 'vocab_size in config.json is 300'),
    ({'n_layer': 3}, "12 tensors too many or too few, such as 'transformer"),
    ({'n_layer': 1}, "12 tensors too many or too few, such as 'transformer"),
    ({'n_layer': 1000}, '11976 tensors too many or too few'),
    ({'n_layer': 10**12}, 'n_layer must be')])
def test_a_config_of_another_model_is_refused(folder, tmp_path, fields, message):
    change(folder, 'config.json', **fields)
    assert message in refusal(folder, tmp_path)


@pytest.mark.parametrize('fields', [{'n_inner': 128}, {'activation_function': 'gelu_pytorch_tanh'},
                                    {'n_inner': None},
                                    {'activation_function': None, 'layer_norm_epsilon': None}])
def test_a_config_that_says_the_same_in_other_words_is_read(home, folder, tmp_path, fields):
    change(folder, 'config.json', **fields)
    assert_bits(read_back(folder, tmp_path), home[2])


def test_an_output_layer_that_is_not_tied_may_be_the_same(home, folder, tmp_path):
    change(folder, 'config.json', tie_word_embeddings=False)
    safetensors.numpy.save_file({**tensors(home[2]), 'lm_head.weight': home[2]['model/wte']},
                                folder / 'model.safetensors')
    assert_bits(read_back(folder, tmp_path), home[2])


@pytest.mark.parametrize('edit, message', [
    (lambda t: t.pop('transformer.h.1.ln_2.bias'), "such as 'transformer.h.1.ln_2.bias'"),
    (lambda t: t.pop('transformer.wte.weight'), 'tensors too many or too few'),
    (lambda t: t.update({'other.wte.weight': np.zeros(1, np.float32)}), 'tensors too many or too few'),
    (lambda t: t.update({'score.weight': np.zeros([2, 32], np.float32)}), "such as 'score.weight'"),
    (lambda t: t.update({'lm_head.weight': t['transformer.wte.weight'] * 2}),
     'lm_head.weight must be the same as transformer.wte.weight'),
    (lambda t: t.update({'lm_head.weight': t['transformer.wte.weight'][:-1]}),
     'lm_head.weight is F32 [556, 32], but must be'),
    (lambda t: t.update({'transformer.ln_f.weight': np.ones(31, np.float32)}), 'ln_f.weight is F32 [31]'),
    (lambda t: t.update({'transformer.ln_f.weight': np.ones(32)}), 'ln_f.weight is F64'),
    (lambda t: t.update({'transformer.ln_f.weight': np.ones(32, np.int8)}), 'ln_f.weight is I8'),
    # One transposed among others that are not: the square ones could be either.
    (lambda t: t.update({'transformer.h.1.mlp.c_fc.weight': np.ascontiguousarray(
        t['transformer.h.1.mlp.c_fc.weight'].T)}), 'is F32 [128, 32], but must be'),
    (lambda t: t.clear(), 'tensors too many or too few')])
def test_tensors_that_are_not_a_gpt2s_are_refused(home, folder, tmp_path, edit, message):
    found = tensors(home[2])
    edit(found)
    safetensors.numpy.save_file(found, folder / 'model.safetensors')
    assert message in refusal(folder, tmp_path)


def test_the_last_row_of_an_output_layer_counts(home, folder, tmp_path):
    head = home[2]['model/wte'].copy()
    head[-1, -1] += 1
    safetensors.numpy.save_file({**tensors(home[2]), 'lm_head.weight': head}, folder / 'model.safetensors')
    assert 'lm_head.weight must be the same' in refusal(folder, tmp_path)


def header_of(length, text=b'{}'):
    return length.to_bytes(8, 'little') + text


@pytest.mark.parametrize('damage', [
    lambda data: data[:-1], lambda data: data[:len(data) // 2], lambda data: data[:100],
    lambda data: data[:7],
    lambda data: b'', lambda data: data + b'\0', lambda data: b'\x80\x04' + data,
    lambda data: header_of(2**63),
    lambda data: header_of(2**64 - 1), lambda data: header_of(99_999_999), lambda data: header_of(2, b'xx'),
    lambda data: header_of(2, b'[]'),
    lambda data: data.replace(b'"data_offsets": [0,', b'"data_offsets": [4,', 1),
    lambda data: data.replace(b'"shape": [96, 32]', b'"shape": [99, 32]', 1),
    lambda data: data.replace(b'"F32"', b'"X32"', 1)])
def test_damaged_safetensors_are_refused(folder, tmp_path, damage):
    data = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(damage(data))
    assert refusal(folder, tmp_path).startswith(f'{folder}/model.safetensors is damaged (')


def test_whatever_stands_in_a_header_it_is_refused_or_read_whole(home, folder):
    """No change of a header's bytes leads to anything but a message, or to weights of the right shapes."""
    path, rng = folder / 'model.safetensors', random.Random(0)
    data = path.read_bytes()
    length = 8 + int.from_bytes(data[:8], 'little')
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 3])):
            changed[rng.randrange(length)] = rng.choice(b'0123456789,:"[]{} \\-e\xff')
        path.write_bytes(changed)
        try:
            found = hugging_face.find_weights(str(folder), home[1], tied=True)
        except InputError:
            refused += 1
        else:
            assert {name: list(hugging_face.read_tensor(*found[name]).shape) for name in found} == {
                name: shape[-2:] for name, shape in model.weight_shapes(home[1]).items()}
    assert refused > 200


def test_a_byte_order_mark_is_no_part_of_a_file(home, folder, tmp_path):
    shard(folder, tensors(home[2]))
    for name in ('config.json', 'vocab.json', 'merges.txt', 'model.safetensors.index.json'):
        (folder / name).write_bytes('\ufeff'.encode() + (folder / name).read_bytes())
    assert_bits(read_back(folder, tmp_path), home[2])


@pytest.mark.parametrize('name', ['config.json', 'vocab.json', 'merges.txt', 'model.safetensors'])
def test_a_missing_file_is_named(folder, tmp_path, name):
    os.unlink(folder / name)
    assert name in refusal(folder, tmp_path)


@pytest.mark.parametrize('name', ['config.json', 'vocab.json', 'added_tokens.json', 'tokenizer.json',
                                  'model.safetensors.index.json'])
@pytest.mark.parametrize('content', ['', '{', '[]', 'null', '"x"', '[' * 100_000, '{}'])
def test_json_that_is_not_what_it_should_be_is_refused(folder, tmp_path, name, content):
    if name == 'model.safetensors.index.json':
        os.unlink(folder / 'model.safetensors')
    (folder / name).write_text(content)
    if (name, content) == ('added_tokens.json', '{}'):
        read_back(folder, tmp_path)
    else:
        assert name in refusal(folder, tmp_path)


@pytest.mark.parametrize('weight_map, message', [
    ({'a': '../model.safetensors'}, 'not a plain folder name'),
    ({'a': '/etc/passwd'}, 'not a plain folder name'),
    ({'a': '/x/y.safetensors'}, 'not a plain folder name'), ({'a': 1}, '/1; copy it'),
    ({}, 'tensors too many or too few'),
    ([], 'no weight_map'), ({'a': 'b.safetensors'}, 'b.safetensors; copy it')])
def test_an_index_that_names_what_it_should_not_is_refused(folder, tmp_path, weight_map, message):
    os.rename(folder / 'model.safetensors', tmp_path / 'model.safetensors')
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    assert message in refusal(folder, tmp_path)


def test_a_missing_shard_is_named(home, folder, tmp_path):
    shard(folder, tensors(home[2]))
    os.unlink(folder / 'model-00002-of-00003.safetensors')
    assert f'no {folder}/model-00002-of-00003.safetensors' in refusal(folder, tmp_path)


@pytest.mark.parametrize('edit, message', [
    (lambda t: t['model'].update(type='WordPiece'), 'not the byte-level BPE'),
    (lambda t: t.update(model=[1]), 'not the byte-level BPE'),
    (lambda t: t.pop('pre_tokenizer'), 'not the byte-level BPE'),
    (lambda t: t['pre_tokenizer'].update(type='Metaspace'), 'not the byte-level BPE'),
    (lambda t: t['pre_tokenizer'].update(use_regex=False), 'not the byte-level BPE'),
    (lambda t: t['pre_tokenizer'].update(add_prefix_space=True), 'add_prefix_space must be false'),
    (lambda t: t.update(normalizer={'type': 'NFC'}), 'normalizer must be false or empty'),
    (lambda t: t['model'].update(ignore_merges=True), 'ignore_merges must be false'),
    (lambda t: t['model'].update(merges=[['a']]), 'not the byte-level BPE'),
    (lambda t: t['model'].update(merges=[7]), 'not the byte-level BPE'),
    (lambda t: t['model'].update(merges=[['a', 7]]), "lacks 'a7'"),
    (lambda t: t['model'].update(merges=None), 'not the byte-level BPE'),
    (lambda t: t.update(added_tokens={'x': 1}), 'not the byte-level BPE'),
    (lambda t: t['model'].update(vocab=[]), 'not the byte-level BPE'),
    (lambda t: t['model'].update(merges=[['Ā', 'zzz']]), "lacks 'zzz'"),
    (lambda t: t.update(added_tokens=['x']), 'not the byte-level BPE'),
    (lambda t: t.update(added_tokens=[{'id': 1}]), 'must be a text'),
    (lambda t: t.update(added_tokens=[{'id': 'x', 'content': '[PAD]'}]), "the id 'x'"),
    (lambda t: t.update(added_tokens=[{'id': 5, 'content': '[PAD]'}]), "the id '5', expected a")])
def test_a_tokenizer_of_another_kind_is_refused(folder, tmp_path, edit, message):
    values = tokenizer_json(*map(json.loads, map(json.dumps, tiny_bpe())))
    edit(values)
    (folder / 'tokenizer.json').write_text(json.dumps(values))
    assert message in refusal(folder, tmp_path)


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt', 'pytorch_model-00001-of-00002.bin'])
def test_a_pickle_is_refused_and_not_opened(folder, tmp_path, name):
    os.unlink(folder / 'model.safetensors')
    os.mkfifo(folder / name)  # opening it would wait for ever
    message = refusal(folder, tmp_path)
    assert 'model.safetensors' in message and 'a .bin may run any program' in message


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert refusal(tmp_path / 'absent', tmp_path).startswith(f'no {tmp_path}/absent/config.json')


# What is left behind

@pytest.mark.parametrize('after', [0, 5])
def test_a_disk_that_is_full_leaves_nothing(home, tmp_path, monkeypatch, after):
    left = itertools.count()

    @contextlib.contextmanager
    def full(path, *args, original=paths.replacing, **more):
        if next(left) >= after:
            raise OSError(28, 'No space left on device', path)
        with original(path, *args, **more) as file:
            yield file
    monkeypatch.setattr(paths, 'replacing', full)
    with pytest.raises(OSError, match='No space'):
        to_hf('toy', str(tmp_path / 'out'), models_dir=str(home[0] / 'models'))
    assert os.listdir(tmp_path) == []


def test_a_damaged_checkpoint_is_refused_and_leaves_nothing(home, tmp_path):
    directory = shutil.copytree(home[0] / 'models' / 'toy', tmp_path / 'models' / 'toy')
    data = directory / 'model.ckpt.data-00000-of-00001'
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(InputError, match='cannot be read, use another checkpoint'):
        to_hf('toy', str(tmp_path / 'out'), models_dir=str(tmp_path / 'models'))
    assert os.listdir(tmp_path) == ['models']


# Memory

def test_written_tensors_are_not_kept(tmp_path):
    alive = []

    def values():
        for i in range(20):
            value = np.full([10, 10], i, np.float32)
            alive.append(weakref.ref(value))
            yield value
            del value
            assert sum(each() is not None for each in alive) <= 1

    hugging_face.write_safetensors(tmp_path / 'x.safetensors', {f't{i}': [10, 10] for i in range(20)},
                                   values())
    found = safetensors.numpy.load_file(tmp_path / 'x.safetensors')
    assert {name: value.flat[0] for name, value in found.items()} == {f't{i}': i for i in range(20)}


def aligned(shape):
    """A float32 array at an address where TensorFlow makes no copy of it."""
    count = math.prod(shape)
    memory = np.empty(count + 16, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first:first + count].reshape(shape)


def test_of_weights_on_their_way_into_a_checkpoint_few_are_kept(home, tmp_path, monkeypatch):
    monkeypatch.setattr(new_model, 'SHARD_BYTES', 20_000)
    alive, largest = [], max(value.nbytes for value in home[2].values())

    def values():
        for name in model.weight_shapes(home[1]):
            value = aligned(home[2][f'model/{name}'].shape)
            assert value.ctypes.data % 64 == 0
            value[...] = home[2][f'model/{name}']
            alive.append(weakref.ref(value))
            yield name, value
            del value
            assert sum(each().nbytes for each in alive if each() is not None) <= max(20_000, largest)

    new_model.write(str(tmp_path), home[1], values())
    assert_bits(weights(tmp_path), home[2])
