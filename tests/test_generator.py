"""The generator and the two sampling scripts."""
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings

import pytest
import tensorflow.compat.v1 as tf

import checkpoint
import cli
import generator
import interactive_conditional_samples
import model
from create_model import create_model
from encoder import get_encoder
from errors import InputError
from generate_unconditional_samples import sample_model
from interactive_conditional_samples import interact_model

SIZES = {'n_layer': 2, 'n_head': 2, 'n_embd': 32, 'n_ctx': 48}
END = '<|endoftext|>'
LINE = '=' * 40 + ' SAMPLE {} ' + '=' * 40 + '\n'
ASKED = 'Model prompt >>> '


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A folder with the model `toy`; larger weights than at first make its greedy text more than one token again."""
    models = tmp_path_factory.mktemp('models')
    create_model('toy', **SIZES, models_dir=str(models), seed=1)
    reader = tf.train.load_checkpoint(str(models / 'toy'))
    with tf.Graph().as_default(), tf.Session() as session:
        for name, shape in reader.get_variable_to_shape_map().items():
            factor = 30 if name == 'model/wpe' else 10 if len(shape) > 1 else 1
            tf.get_variable(name, initializer=reader.get_tensor(name) * factor)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(models / 'toy' / 'model.ckpt'), write_state=False)
    return models


@pytest.fixture
def flags(models):
    return {'model_name': 'toy', 'models_dir': str(models)}


@pytest.fixture(scope='module')
def enc(models):
    return get_encoder('toy', str(models))


def make(models, **changes):
    """A generator.Samples for prompts, 8 tokens each, but for the changes."""
    flags = {'seed': 1, 'nsamples': 2, 'batch_size': 1, 'length': 8, 'temperature': 1, 'top_k': 0, 'top_p': 1,
             'truncate': None, 'unconditional': False}
    return generator.Samples('toy', str(models), **{**flags, **changes})


@pytest.fixture(scope='module')
def samples(models):
    return make(models)


@pytest.fixture
def fake(monkeypatch, enc):
    """Puts FakeGenerator in the place of the model, and returns its class."""
    class Fake(FakeGenerator):
        encode = staticmethod(enc.encode)
        made, calls = [], []
        texts = None
    monkeypatch.setattr(generator, 'Generator', Fake)
    monkeypatch.setattr(checkpoint, 'restore', lambda *_: None)
    return Fake


class FakeGenerator:
    """Says `text 0`, `text 1`, … or what `texts` holds, and keeps what it was made and called with."""

    def __init__(self, session, hparams, **flags):
        self.made.append(flags)

    def __call__(self, numbers, seed, context=None):
        self.calls.append((list(numbers), seed, context))
        return [self.tokens(self.texts[number] if self.texts else f'text {number}') for number in numbers]

    def tokens(self, text):
        first, end, rest = text.partition(END)
        return [*self.encode(first), *([256] if end else []), *self.encode(rest)]


def type_in(monkeypatch, data, isatty=False):
    """Makes the bytes what stdin gives."""
    stdin = io.TextIOWrapper(io.BytesIO(data), encoding='utf-8')
    stdin.isatty = lambda: isatty
    monkeypatch.setattr(sys, 'stdin', stdin)


def split_samples(out):
    """The texts of a script's output, by their numbers."""
    parts = re.split(r'^={40} SAMPLE (\d+) ={40}\n', out, flags=re.MULTILINE)
    assert parts[0] == ''
    assert parts[1::2] == [str(number) for number in range(1, len(parts) // 2 + 1)]
    assert all(part.endswith('\n') for part in parts[2::2])
    return [part[:-1] for part in parts[2::2]]


def drawn(capsys, script, **flags):
    """The texts that a script prints."""
    script(**flags)
    return split_samples(capsys.readouterr().out)


def written(samples, *prompts, **attributes):
    """The texts that one Samples writes for prompts, one after another."""
    old = {name: getattr(samples, name) for name in attributes}
    vars(samples).update(attributes)
    try:
        result = []
        for prompt in prompts:
            file = io.StringIO()
            samples.write(file, prompt)
            result.append(split_samples(file.getvalue()))
        return result
    finally:
        vars(samples).update(old)


def refused(capfd, script, *argv):
    """The one line of stderr with which a script's command line ends; status 2, nothing on stdout."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.run(script, [str(word) for word in argv])
    said = capfd.readouterr()
    assert stopped.value.code == 2
    assert said.out == ''
    assert said.err.count('\n') == 1 and said.err.endswith('\n'), said.err
    return said.err


# The output, as the original prints it

def test_unconditional_samples_stand_each_below_a_line_of_its_number(fake, flags, capsys):
    sample_model(**flags, nsamples=3, batch_size=2)
    assert capsys.readouterr() == (LINE.format(1) + 'text 0\n' + LINE.format(2) + 'text 1\n' +
                                   LINE.format(3) + 'text 2\n', '')


def test_prompts_are_asked_for_on_stderr_and_answered_on_stdout(fake, flags, capsys, monkeypatch):
    type_in(monkeypatch, b'one\ntwo\n')
    interact_model(**flags, nsamples=2)
    answer = LINE.format(1) + 'text 0\n' + LINE.format(2) + 'text 1\n' + '=' * 80 + '\n'
    assert capsys.readouterr() == (answer * 2, ASKED * 3 + '\n')


def test_a_prompt_given_by_flag_is_the_only_one(fake, flags, capsys, monkeypatch, enc):
    type_in(monkeypatch, b'unread\n')
    interact_model(**flags, prompt='1e3')
    assert capsys.readouterr() == (LINE.format(1) + 'text 0\n', '')
    assert [context for _, _, context in fake.calls] == [enc.encode('1e3')]


def test_the_prefix_is_printed_where_asked_for(fake, flags, capsys):
    interact_model(**flags, prompt='Once, a ', include_prefix=True, nsamples=2)
    assert capsys.readouterr().out == (LINE.format(1) + 'Once, a text 0\n' + LINE.format(2) + 'Once, a text 1\n')


def test_an_empty_prompt_is_asked_for_again(fake, flags, capsys, monkeypatch, enc):
    type_in(monkeypatch, b'\n\none\n')
    interact_model(**flags)
    assert capsys.readouterr().err == f'{ASKED}Prompt should not be empty!\n' * 2 + ASKED * 2 + '\n'
    assert [context for _, _, context in fake.calls] == [enc.encode('one')]


@pytest.mark.parametrize('data, prompts', [(b'', []), (b'one', ['one']), (b'one\r\n', ['one']), (b' one \n', [' one ']),
                                           ('héß 日本\n'.encode(), ['héß 日本'])])
def test_the_end_of_input_ends_the_script_cleanly(fake, flags, capsys, monkeypatch, enc, data, prompts):
    type_in(monkeypatch, data)
    interact_model(**flags)
    assert [context for _, _, context in fake.calls] == [enc.encode(prompt) for prompt in prompts]
    assert capsys.readouterr().err.endswith(f'{ASKED}\n')


@pytest.mark.parametrize('script, more', [(sample_model, {}), (interact_model, {'prompt': 'x'})])
@pytest.mark.parametrize('nsamples, batch_size, batches', [
    (5, 2, [[0, 1], [2, 3], [4]]), (4, 2, [[0, 1], [2, 3]]), (2, 5, [[0, 1]]), (1, 1, [[0]])])
def test_exactly_nsamples_are_drawn(fake, flags, capsys, script, more, nsamples, batch_size, batches):
    assert len(drawn(capsys, script, **flags, **more, nsamples=nsamples, batch_size=batch_size)) == nsamples
    assert [numbers for numbers, _, _ in fake.calls] == batches


def test_no_samples_asked_for_are_samples_without_end(fake, flags, capsys, monkeypatch):
    def until_hundred(self, numbers, *args):
        if numbers[0] == 100:
            raise KeyboardInterrupt
        return FakeGenerator.__call__(self, numbers, *args)
    monkeypatch.setattr(fake, '__call__', until_hundred)
    with pytest.raises(KeyboardInterrupt):
        sample_model(**flags, batch_size=4)
    assert split_samples(capsys.readouterr().out) == [f'text {number}' for number in range(100)]


@pytest.mark.parametrize('truncate, texts', [
    (None, [f'one. two.{END}three', 'none', '.', END]), ('.', ['one', 'none', '', END]),
    (END, ['one. two.', 'none', '.', '']), ('two.', ['one. ', 'none', '.', END]), ('z', [f'one. two.{END}three', 'none',
                                                                                        '.', END])])
def test_a_sample_ends_where_truncate_appears(fake, flags, capsys, truncate, texts):
    fake.texts = [f'one. two.{END}three', 'none', '.', END]
    assert drawn(capsys, sample_model, **flags, nsamples=4, truncate=truncate) == texts
    assert drawn(capsys, interact_model, **flags, nsamples=4, truncate=truncate, prompt='z. two.') == texts


def test_the_prefix_is_never_truncated(fake, flags, capsys):
    assert drawn(capsys, interact_model, **flags, prompt='a. b', truncate='.', include_prefix=True) == ['a. btext 0']


def test_the_end_of_text_stops_the_model_only_where_it_truncates(fake, flags):
    for truncate in (END, None, '.'):
        sample_model(**flags, nsamples=1, truncate=truncate)
    assert [made['stop_token'] for made in fake.made] == [256, None, None]


def test_lengths_are_the_originals_where_none_is_given(fake, flags):
    sample_model(**flags, nsamples=1)
    interact_model(**flags, prompt='x')
    sample_model(**flags, nsamples=1, length=3)
    interact_model(**flags, prompt='x', length=3)
    assert [made['length'] for made in fake.made] == [48, 24, 3, 3]
    assert [made['start_token'] for made in fake.made] == [256, None, 256, None]


def test_controls_reach_the_model(fake, flags):
    controls = {'temperature': 0.7, 'top_k': 40, 'top_p': 0.9}
    sample_model(**flags, nsamples=1, **controls)
    interact_model(**flags, prompt='x', **controls)
    assert all(made.items() >= controls.items() for made in fake.made)


def test_a_seed_holds_for_every_prompt_and_none_is_a_new_one_each_time(fake, flags, monkeypatch):
    for seed in (7, None):
        type_in(monkeypatch, b'one\none\n')
        interact_model(**flags, seed=seed)
    first, second, third, fourth = [seed for _, seed, _ in fake.calls]
    assert first == second == 7
    assert third != fourth


# --output

@pytest.mark.parametrize('script, more', [(sample_model, {}), (interact_model, {'prompt': 'x'})])
def test_output_is_a_file_instead_of_stdout(fake, flags, capsys, tmp_path, script, more):
    script(**flags, **more, nsamples=2, output=str(tmp_path / 'out.txt'))
    assert capsys.readouterr() == ('', '')
    assert os.listdir(tmp_path) == ['out.txt']
    assert (tmp_path / 'out.txt').read_text() == LINE.format(1) + 'text 0\n' + LINE.format(2) + 'text 1\n'


def test_output_is_utf_8_and_replaces_what_was_there(fake, flags, tmp_path):
    (tmp_path / 'out.txt').write_text('old ' * 100)
    fake.texts = ['häß 日本']
    sample_model(**flags, nsamples=1, output=str(tmp_path / 'out.txt'))
    assert (tmp_path / 'out.txt').read_bytes() == (LINE.format(1) + 'häß 日本\n').encode()


def test_output_holds_the_answers_to_all_prompts(fake, flags, tmp_path, monkeypatch, capsys):
    type_in(monkeypatch, b'one\ntwo\n')
    interact_model(**flags, output=str(tmp_path / 'out.txt'))
    assert capsys.readouterr().out == ''
    assert (tmp_path / 'out.txt').read_text() == (LINE.format(1) + 'text 0\n' + '=' * 80 + '\n') * 2


def raise_at(fake, monkeypatch, number, error):
    def raising(self, numbers, *args):
        if number in numbers:
            raise error
        return FakeGenerator.__call__(self, numbers, *args)
    monkeypatch.setattr(fake, '__call__', raising)


def test_on_ctrl_c_what_is_done_is_kept(fake, flags, tmp_path, monkeypatch):
    raise_at(fake, monkeypatch, 2, KeyboardInterrupt)
    try:
        sample_model(**flags, nsamples=9, output=str(tmp_path / 'out.txt'))
    except KeyboardInterrupt:  # which would end pytest
        pytest.fail('the interrupt was not taken as the end')
    assert os.listdir(tmp_path) == ['out.txt']
    assert split_samples((tmp_path / 'out.txt').read_text()) == ['text 0', 'text 1']


def test_on_an_error_the_old_file_is_kept(fake, flags, tmp_path, monkeypatch):
    (tmp_path / 'out.txt').write_text('old')
    raise_at(fake, monkeypatch, 2, RuntimeError('fault'))
    with pytest.raises(RuntimeError):
        sample_model(**flags, nsamples=9, output=str(tmp_path / 'out.txt'))
    assert os.listdir(tmp_path) == ['out.txt'] and (tmp_path / 'out.txt').read_text() == 'old'


@pytest.mark.parametrize('output', ['', '.', 'folder', 'folder/', 'new/'])
@pytest.mark.parametrize('script, more', [(sample_model, {}), (interact_model, {'prompt': 'x'})])
def test_an_output_that_is_no_file_is_refused_before_anything_is_drawn(fake, flags, tmp_path, monkeypatch, script, more,
                                                                       output):
    (tmp_path / 'folder').mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, OSError)):
        script(**flags, **more, nsamples=1, output=output)
    assert fake.calls == []
    assert os.listdir(tmp_path) == ['folder'] and os.listdir(tmp_path / 'folder') == []


def test_output_without_an_end_is_refused(flags, tmp_path):
    with pytest.raises(InputError, match='--output needs --nsamples'):
        sample_model(**flags, output=str(tmp_path / 'out.txt'))
    assert os.listdir(tmp_path) == []


# What is drawn

def test_batch_size_does_not_change_the_samples(flags, capsys):
    one, two, three = (drawn(capsys, sample_model, **flags, seed=3, nsamples=4, length=12, batch_size=batch_size)
                       for batch_size in (1, 2, 3))
    assert one == two == three
    assert len(set(one)) == 4


def test_batch_size_does_not_change_continuations(samples):
    one, two, three = (written(samples, 'a prompt', nsamples=5, batch_size=batch_size) for batch_size in (1, 2, 3))
    assert one == two == three
    assert len(set(one[0])) == 5


def test_more_samples_begin_with_those_of_fewer(samples):
    assert written(samples, 'a prompt', nsamples=4)[0][:2] == written(samples, 'a prompt', nsamples=2)[0]


def test_a_prompt_and_seed_give_the_same_text_whatever_came_before(samples):
    first, other, again, once_more = written(samples, 'a prompt', 'another', 'a prompt', 'a prompt')
    assert first == again == once_more != other


def test_a_prompt_in_a_new_session_gives_the_same_text(samples, flags, capsys):
    assert drawn(capsys, interact_model, **flags, prompt='a prompt', seed=1, nsamples=2, length=8) == written(
        samples, 'a prompt')[0]


def test_other_seeds_and_none_give_other_samples(samples):
    texts = [text for seed in (1, 2, 2**31, 2**63 - 1, None, None)
             for text in written(samples, 'a prompt', seed=seed)[0]]
    assert len(set(texts)) == len(texts) == 12


@pytest.mark.parametrize('seed', [2**63, 2**64])
def test_a_seed_beyond_64_bits_is_refused_or_used_but_no_fault(samples, seed):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        try:
            assert len(written(samples, 'a prompt', seed=seed)[0]) == 2
        except InputError as error:
            assert 'seed' in str(error)


def test_other_prompts_give_other_samples(samples):
    assert written(samples, 'a prompt') != written(samples, 'b prompt')


def greedy(directory, context, length):
    """The likeliest continuation, each token by a whole pass of model.model without a cache."""
    tokens = list(context)
    with tf.Graph().as_default(), tf.Session() as session:
        hparams = model.load_hparams(str(directory / 'hparams.json'))
        X = tf.placeholder(tf.int32, [1, None])
        best = tf.argmax(model.model(hparams, X)['logits'][0, -1])
        tf.train.Saver().restore(session, str(directory / 'model.ckpt'))
        for _ in range(length):
            tokens.append(int(session.run(best, {X: [tokens]})))
    return tokens[len(context):]


@pytest.mark.parametrize('prompt', ['a prompt', 'b'])
def test_temperature_0_is_the_greedy_continuation(models, enc, prompt):
    context = enc.encode(prompt)
    expected = greedy(models / 'toy', context, 40)
    assert len(set(expected)) > 10
    found = make(models, temperature=0, length=40).generate(range(2), 1, context)
    assert found.tolist() == [expected] * 2


def test_unconditional_samples_continue_the_end_of_text(flags, models, capsys, enc):
    expected = greedy(models / 'toy', [256], 30)
    assert len(set(expected)) > 10
    assert drawn(capsys, sample_model, **flags, length=30, temperature=0, nsamples=1) == [enc.decode(expected)]


@pytest.mark.parametrize('likeliest', [{'top_k': 1}, {'top_p': 1e-9}, {'temperature': 1e-40}])
def test_what_leaves_only_the_likeliest_token_is_greedy(models, likeliest):
    expected = greedy(models / 'toy', [256], 20)
    found = make(models, unconditional=True, length=20, **likeliest).generate(range(2), 1)
    assert found.tolist() == [expected] * 2


def test_prompt_and_sample_may_fill_the_context_but_no_more(samples):
    assert samples.generate([0], 1, [64] * 40).shape == (1, 8)
    with pytest.raises(InputError, match='41 tokens, which with --length 8 exceed n_ctx, 48'):
        samples.generate([0], 1, [64] * 41)


def test_nothing_is_added_to_the_graph_by_drawing(samples):
    graph = samples.session.graph
    before = len(graph.get_operations())
    written(samples, 'a prompt', 'another', batch_size=2, nsamples=3)
    assert graph.finalized and len(graph.get_operations()) == before


def test_an_unconditional_graph_is_finalized_too(models):
    assert make(models, unconditional=True, truncate=END).session.graph.finalized


def test_a_run_directory_is_a_model_directory(models, flags, capsys, tmp_path):
    run = tmp_path / 'checkpoint' / 'run1'
    run.mkdir(parents=True)
    for name in ('hparams.json', 'encoder.json', 'vocab.bpe'):
        shutil.copy(models / 'toy' / name, run)
    for suffix in ('data-00000-of-00001', 'index', 'meta'):
        shutil.copy(models / 'toy' / f'model.ckpt.{suffix}', run / f'model-70.{suffix}')
    (run / 'checkpoint').write_text('model_checkpoint_path: "model-70"\nall_model_checkpoint_paths: "model-70"\n')
    (run / 'counter').write_text('70\n')
    text = drawn(capsys, sample_model, model_name='run1', models_dir=str(tmp_path / 'checkpoint'), nsamples=1, seed=1)
    assert text == drawn(capsys, sample_model, **flags, nsamples=1, seed=1)


def test_a_piped_prompt_is_answered_with_nothing_but_samples_on_stdout(models, samples):
    script = os.path.abspath(interactive_conditional_samples.__file__)
    done = subprocess.run([sys.executable, script, '--model_name', 'toy', '--models_dir', str(models), '--seed=1',
                           '--length', '8', '--nsamples', '2'], input=b'a prompt\n', capture_output=True, timeout=120)
    assert (done.returncode, done.stderr.decode()) == (0, ASKED * 2 + '\n')
    out = done.stdout.decode()
    assert out.endswith('=' * 80 + '\n')
    assert split_samples(out.removesuffix('=' * 80 + '\n')) == written(samples, 'a prompt')[0]


# What is refused

@pytest.mark.parametrize('argv, message', [
    (['--length', '49'], 'length must be from 1 to n_ctx, 48, not 49'),
    (['--length', '0'], 'length must be from 1 to n_ctx, 48, not 0'),
    (['--length=-1'], 'length must be from 1 to n_ctx, 48, not -1'),
    (['--temperature=-0.1'], 'temperature must be'),
    (['--top_k=-1'], 'top_k must be'),
    (['--top_p=1.1'], 'top_p must be'),
    (['--top_p=-0.1'], 'top_p must be'),
    (['--nsamples=-1'], '--nsamples must be'),
    (['--batch_size=0'], '--batch_size must be'),
    (['--batch_size=-1'], '--batch_size must be'),
    (['--seed=-1'], '--seed must be'),
    (['--truncate='], '--truncate needs a text'),
    (['--model_name=absent'], 'no model directory'),
    (['--model_name=../toy'], '--model_name'),
])
@pytest.mark.parametrize('script, more', [(sample_model, ['--nsamples=1']), (interact_model, ['--prompt=x'])])
def test_a_flag_out_of_range_is_one_line_and_status_2(models, capfd, script, more, argv, message):
    given = ['--models_dir', models, *([] if '--model_name' in argv[0] else ['--model_name=toy'])]
    more = [] if '--nsamples' in argv[0] and script is sample_model else more
    assert message in refused(capfd, script, *given, *more, *argv)


@pytest.mark.parametrize('argv, message', [
    (['--prompt='], '--prompt is empty'), (['--prompt', 'x' * 30], 'the prompt has 30 tokens'),
    (['--prompt', 'x\udcff'], 'offset 1'), (['--nsamples=0'], '--nsamples must be 1 or more')])
def test_a_prompt_that_cannot_be_continued_is_one_line_and_status_2(models, capfd, argv, message):
    assert message in refused(capfd, interact_model, '--model_name=toy', '--models_dir', models, *argv)


@pytest.mark.parametrize('data, message', [(b'x' * 30 + b'\nx\n', 'the prompt has 30 tokens, which with --length 24'),
                                           (b'ab\xffc\nx\n', 'offset 2')])
def test_a_piped_prompt_that_cannot_be_continued_ends_the_script_in_one_line(models, capfd, monkeypatch, data, message):
    type_in(monkeypatch, data)
    assert message in refused(capfd, interact_model, '--model_name=toy', '--models_dir', models)


def test_a_person_at_a_terminal_is_asked_again(flags, capsys, monkeypatch):
    type_in(monkeypatch, b'x' * 30 + b'\nx\n', isatty=True)
    interact_model(**flags)
    said = capsys.readouterr()
    assert len(split_samples(said.out.removesuffix('=' * 80 + '\n'))) == 1
    assert re.fullmatch(rf'{ASKED}the prompt has 30 tokens, .*\n{ASKED}{ASKED}\n', said.err)


def test_the_defaults_are_the_originals():
    defaults = dict(zip(sample_model.__code__.co_varnames, sample_model.__defaults__, strict=False))
    assert defaults == {'model_name': '124M', 'seed': None, 'nsamples': 0, 'batch_size': 1, 'length': None,
                        'temperature': 1, 'top_k': 0, 'top_p': 1, 'models_dir': 'models', 'checkpoint': None,
                        'truncate': None, 'output': None}
    other = dict(zip(interact_model.__code__.co_varnames, interact_model.__defaults__, strict=False))
    assert other == {**defaults, 'nsamples': 1, 'prompt': None, 'include_prefix': False}


# Model directories that are not whole

@pytest.fixture
def damaged(models, tmp_path):
    """A copy of the model, to be damaged, named `bad`."""
    return shutil.copytree(models / 'toy', tmp_path / 'models' / 'bad')


def complaint(capfd, directory):
    return refused(capfd, sample_model, '--model_name', directory.name, '--models_dir', directory.parent,
                   '--nsamples=1', '--seed=1', '--length=4')


@pytest.mark.parametrize('name', ['hparams.json', 'encoder.json', 'vocab.bpe', 'checkpoint', 'model.ckpt.index',
                                  'model.ckpt.data-00000-of-00001'])
def test_a_missing_file_is_named(damaged, capfd, name):
    (damaged / name).unlink()
    assert str(damaged) in (said := complaint(capfd, damaged)) and name in said


@pytest.mark.parametrize('name', ['hparams.json', 'encoder.json', 'vocab.bpe', 'checkpoint'])
def test_a_file_of_other_bytes_is_named(damaged, capfd, name):
    (damaged / name).write_bytes(b'\xff\xfe\0garbage\n\n')
    assert str(damaged / name) in complaint(capfd, damaged)


@pytest.mark.parametrize('content, message', [
    ('', 'is not JSON'), ('{"n_vocab": 257', 'is not JSON'), ('[' * 100000, 'is not JSON'),
    ('[257, 48, 32, 2, 2]', 'must hold an object'), ('null', 'must hold an object'),
    ({'n_head': None}, 'n_head must be a whole number above 0'), ({'n_head': '2'}, 'n_head must be a whole number'),
    ({'n_ctx': 48.0}, 'n_ctx must be a whole number'), ({'n_layer': 0}, 'n_layer must be a whole number above 0'),
    ({'n_head': 3}, 'n_embd (32) must be divisible by n_head (3)'), ({'n_heads': 2}, "'n_heads'"),
])
def test_hparams_that_make_no_model_are_refused(damaged, capfd, content, message):
    if isinstance(content, dict):
        content = json.dumps({'n_vocab': 257, 'n_ctx': 48, 'n_embd': 32, 'n_head': 2, 'n_layer': 2, **content})
    (damaged / 'hparams.json').write_text(content)
    said = complaint(capfd, damaged)
    assert str(damaged / 'hparams.json') in said and message in said


@pytest.mark.parametrize('name', ['n_vocab', 'n_ctx', 'n_embd', 'n_head', 'n_layer'])
def test_hparams_that_lack_a_size_are_refused(damaged, capfd, name):
    values = json.loads((damaged / 'hparams.json').read_text())
    del values[name]
    (damaged / 'hparams.json').write_text(json.dumps(values))
    assert f'{damaged}/hparams.json lacks {name}' in complaint(capfd, damaged)


@pytest.mark.parametrize('sizes, message', [
    ({'n_embd': 64}, 'has shape [48, 32], but hparams.json makes it [48, 64]'), ({'n_ctx': 64}, 'model/wpe has shape'),
    ({'n_vocab': 300}, 'model/wte has shape [257, 32], but hparams.json makes it [300, 32]'),
    ({'n_layer': 3}, 'has no variable model/h2/'), ({'n_vocab': 200}, 'encoder.json has ids up to 256')])
def test_hparams_that_are_not_those_of_the_checkpoint_are_refused(damaged, capfd, sizes, message):
    values = json.loads((damaged / 'hparams.json').read_text())
    (damaged / 'hparams.json').write_text(json.dumps({**values, **sizes}))
    said = complaint(capfd, damaged)
    assert str(damaged) in said and message in said


@pytest.mark.parametrize('content', ['#version: 0.2\na b c\n', '#version: 0.2\nab\n', '#version: 0.2\na b\n\nc d\n',
                                     '#version: 0.2\na b\n'])
def test_merges_that_cannot_be_used_are_refused(damaged, capfd, content):
    (damaged / 'vocab.bpe').write_text(content)
    assert str(damaged / 'vocab.bpe') in complaint(capfd, damaged)


@pytest.mark.parametrize('named', ['/nowhere/124M/model.ckpt', './model.ckpt'])
def test_a_moved_model_loads_the_checkpoint_beside_its_checkpoint_file(damaged, models, capsys, enc, named):
    (damaged / 'checkpoint').write_text(f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "{named}"\n')
    texts = drawn(capsys, sample_model, model_name='bad', models_dir=str(damaged.parent), nsamples=1, length=8,
                  temperature=0)
    assert texts == [enc.decode(greedy(models / 'toy', [256], 8))]


def test_a_checkpoint_that_is_nowhere_is_named(damaged, capfd):
    (damaged / 'checkpoint').write_text('model_checkpoint_path: "/nowhere/124M/other.ckpt"\n')
    said = complaint(capfd, damaged)
    assert str(damaged / 'checkpoint') in said and '/nowhere/124M/other.ckpt' in said


@pytest.mark.parametrize('content', [b'', b'garbage' * 1000])
def test_a_garbage_index_is_refused(damaged, capfd, content):
    (damaged / 'model.ckpt.index').write_bytes(content)
    assert f'{damaged}/model.ckpt cannot be read' in complaint(capfd, damaged)


@pytest.mark.parametrize('length', [0, -4])
def test_a_truncated_data_file_is_refused_with_the_reason(damaged, capfd, length):
    data = damaged / 'model.ckpt.data-00000-of-00001'
    data.write_bytes(data.read_bytes()[:length])
    said = complaint(capfd, damaged)
    assert f'{damaged}/model.ckpt' in said and 'Graph execution error' not in said


def test_a_changed_data_file_is_refused_with_the_reason(damaged, capfd):
    data = damaged / 'model.ckpt.data-00000-of-00001'
    content = bytearray(data.read_bytes())
    content[5000] ^= 0xff
    data.write_bytes(content)
    said = complaint(capfd, damaged)
    assert f'{damaged}/model.ckpt' in said and 'Checksum does not match' in said


def test_a_checkpoint_of_another_network_is_refused(damaged, capfd):
    with tf.Graph().as_default(), tf.Session() as session:
        tf.get_variable('dense/kernel', [2, 2])
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(damaged / 'model.ckpt'), write_state=False)
    said = complaint(capfd, damaged)
    assert f'{damaged}/model.ckpt has no variable model/' in said and 'not a GPT-2 checkpoint' in said


def test_a_vocabulary_without_the_end_of_text_is_refused_for_unconditional_samples_only(damaged, capfd):
    vocabulary = json.loads((damaged / 'encoder.json').read_text(encoding='utf-8'))
    del vocabulary[END]
    (damaged / 'encoder.json').write_text(json.dumps(vocabulary))
    assert f'{damaged}/encoder.json lacks {END}' in complaint(capfd, damaged)
    interact_model('bad', models_dir=str(damaged.parent), prompt='x', length=4, truncate=END)
    assert len(split_samples(capfd.readouterr().out)) == 1
