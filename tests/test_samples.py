"""The two sampling scripts, and how a model is loaded for them. What is drawn is in test_generator.py."""
import inspect
import io
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time

from command_line import cli
from command_line.flags import WEIGHT_PRECISIONS, SamplingFlags

import numpy as np
import numpy_gpt2
import pytest
import tensorflow.compat.v1 as tf
import toy

import interactive_conditional_samples
import model
from create_model import create_model
from encoder import get_encoder
from errors import InputError
from fast import session
from generate_unconditional_samples import sample_model
from generation import beam_search, continuation, generator
from generation import samples as sampling
from hparams import load_hparams
from interactive_conditional_samples import interact_model

pytestmark = pytest.mark.slow

SIZES = {'n_layer': 2, 'n_head': 2, 'n_embd': 32, 'n_ctx': 48}
END = '<|endoftext|>'
LINE = '=' * 40 + ' SAMPLE {} ' + '=' * 40 + '\n'
ASKED = 'Model prompt >>> '
DEVICE = f'Device: {session.device()}\n'


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """A folder with the model `toy`; larger weights than at first make its greedy text more than one token
    again."""
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
    """A samples.Samples for prompts, 8 tokens each, but for the changes."""
    flags = {'model_name': 'toy', 'models_dir': str(models), 'seed': 1, 'nsamples': 2, 'length': 8}
    return sampling.SampleWriter(SamplingFlags(**{**flags, **changes}), unconditional=False)


@pytest.fixture(scope='module')
def samples(models):
    return make(models)


@pytest.fixture(scope='module')
def toy_model(samples):
    return samples.model


@pytest.fixture
def fake(monkeypatch, enc):
    """Puts a FakeGenerator in the place of the model, and returns it."""
    made = FakeGenerator(enc)
    monkeypatch.setattr(generator, 'load', lambda *_: made)
    return made


class FakeGenerator(generator.Generator):
    """Says `text 0`, `text 1`, … or what `texts` holds, a token at a time, and keeps what it was called with.

    before: called with the numbers of the samples, which are all of one prompt. after: with each row that
    has grown.
    """

    def __init__(self, enc):
        self.enc, self.hparams = enc, model.default_hparams().override_from_dict({'n_ctx': 48})
        self.encode = enc.encode
        self.texts, self.calls, self.options = None, [], []
        self.before = self.after = lambda _: None

    def continuations(self, contexts, seeds, *, stop=(), **options):
        numbers = [number for _, number in seeds]
        self.calls.append((numbers, seeds[0][0], contexts[0]))
        self.options.append({**options, 'stop': stop})
        self.before(numbers)
        rows = [continuation.Continuation(self.enc, stop) for _ in contexts]
        for row, number in zip(rows, numbers, strict=True):
            for token in self.tokens(self.texts[number] if self.texts else f'text {number}'):
                row.add(token, -1.5)
                self.after(row)
                yield rows
            row.close()
            yield rows

    def tokens(self, text):
        first, end, rest = text.partition(END)
        return [*self.encode(first), *([256] if end else []), *self.encode(rest)]


def type_in(monkeypatch, data, isatty=False):
    """Makes the bytes what stdin gives."""
    stdin = io.TextIOWrapper(io.BytesIO(data), encoding='utf-8', newline='\n')  # as Python opens it on Unix
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
    """The texts that one SampleWriter writes for prompts, one after another."""
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


def argv_of(flags):
    return [f'--{name}={value}' for name, value in flags.items()]


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


# What is drawn on


# The output, as the original prints it

def test_unconditional_samples_stand_each_below_a_line_of_its_number(fake, flags, capsys):
    sample_model(**flags, nsamples=3, batch_size=2)
    assert capsys.readouterr() == (LINE.format(1) + 'text 0\n' + LINE.format(2) + 'text 1\n' +
                                   LINE.format(3) + 'text 2\n', DEVICE)


def test_special_tokens_in_a_prompt_are_text_unless_asked_for(fake, flags, enc, capsys):
    interact_model(**flags, prompt=f'a{END}b')
    interact_model(**flags, prompt=f'a{END}b', special_tokens=True)
    (*_, as_text), (*_, as_token) = fake.calls
    assert (as_text, as_token) == (enc.encode(f'a{END}b'), [*enc.encode('a'), 256, *enc.encode('b')])


def test_the_runs_template_is_around_a_prompt_and_ends_the_answer(
        fake, flags, models, enc, capsys, tmp_path):
    shutil.copytree(models / 'toy', tmp_path / 'toy')
    flags['models_dir'], path = str(tmp_path), tmp_path / 'toy' / 'template.json'
    path.write_text(json.dumps({'template': f'{END}Q: {{prompt}}\nA: {{completion}}\n'}))
    fake.texts = [f' It is.\n{END}Q: more', f' It is.{END}\n', ' It']
    interact_model(**flags, prompt='What?', nsamples=3)
    assert fake.calls[-1][2] == [256, *enc.encode('Q: What?\nA: ')]  # as the template has a special token
    assert split_samples(capsys.readouterr().out) == [' It is.', ' It is.', ' It']
    interact_model(**flags, prompt='What?', template='{prompt}={completion}')
    interact_model(**flags, prompt='What?', template='')
    sample_model(**flags, nsamples=1)
    assert [call[2] for call in fake.calls[-3:]] == [enc.encode('What?='), enc.encode('What?'), [256]]
    with pytest.raises(InputError, match='a template must have'):
        interact_model(**flags, prompt='What?', template='Q')
    path.write_text('{"template": "Q"}')
    with pytest.raises(InputError, match='a template must have'):
        interact_model(**flags, prompt='What?')


def test_prompts_are_asked_for_on_stderr_and_answered_on_stdout(fake, flags, capsys, monkeypatch):
    type_in(monkeypatch, b'one\ntwo\n')
    interact_model(**flags, nsamples=2)
    answer = LINE.format(1) + 'text 0\n' + LINE.format(2) + 'text 1\n' + '=' * 80 + '\n'
    assert capsys.readouterr() == (answer * 2, ASKED + DEVICE + ASKED * 2 + '\n')


def test_a_prompt_given_by_flag_is_the_only_one(fake, flags, capsys, monkeypatch, enc):
    type_in(monkeypatch, b'unread\n')
    interact_model(**flags, prompt='1e3')
    assert capsys.readouterr() == (LINE.format(1) + 'text 0\n', DEVICE)
    assert [context for _, _, context in fake.calls] == [enc.encode('1e3')]


def test_the_prefix_is_printed_where_asked_for(fake, flags, capsys):
    interact_model(**flags, prompt='Once, a ', include_prefix=True, nsamples=2)
    assert capsys.readouterr().out == (
        LINE.format(1) + 'Once, a text 0\n' + LINE.format(2) + 'Once, a text 1\n'
    )


def test_an_empty_prompt_is_asked_for_again(fake, flags, capsys, monkeypatch, enc):
    type_in(monkeypatch, b'\n\none\n')
    interact_model(**flags)
    assert (
        capsys.readouterr().err == f'{ASKED}Prompt should not be empty!\n' * 2 + ASKED + DEVICE + ASKED + '\n'
    )
    assert [context for _, _, context in fake.calls] == [enc.encode('one')]


@pytest.mark.parametrize(
    'data, prompts',
    [
        (b'', []),
        (b'one', ['one']),
        (b'one\r\n', ['one']),
        (b' one \n', [' one ']),
        (b'\xef\xbb\xbfone\r\ntwo\r', ['one', 'two']),
        (b'one\r\n\r\n', ['one']),
        ('héß 日本\n'.encode(), ['héß 日本']),
    ],
)
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
    def until_hundred(numbers):
        if numbers[0] == 100:
            raise KeyboardInterrupt
    fake.before = until_hundred
    with pytest.raises(KeyboardInterrupt):
        sample_model(**flags, batch_size=4)
    assert split_samples(capsys.readouterr().out) == [f'text {number}' for number in range(100)]


@pytest.mark.parametrize(
    'truncate, texts',
    [
        (None, [f'one. two.{END}three', 'none', '.', END]),
        ('.', ['one', 'none', '', END]),
        (END, ['one. two.', 'none', '.', '']),
        ('two.', ['one. ', 'none', '.', END]),
        ('z', [f'one. two.{END}three', 'none', '.', END]),
    ],
)
def test_a_sample_ends_where_truncate_appears(fake, flags, capsys, truncate, texts):
    fake.texts = [f'one. two.{END}three', 'none', '.', END]
    assert drawn(capsys, sample_model, **flags, nsamples=4, truncate=truncate) == texts
    assert drawn(capsys, interact_model, **flags, nsamples=4, truncate=truncate, prompt='z. two.') == texts


def test_the_prefix_is_never_truncated(fake, flags, capsys):
    assert drawn(capsys, interact_model, **flags, prompt='a. b', truncate='.', include_prefix=True) == [
        'a. btext 0'
    ]


def test_lengths_are_the_originals_where_none_is_given(fake, flags):
    sample_model(**flags, nsamples=1)
    interact_model(**flags, prompt='x')
    sample_model(**flags, nsamples=1, length=3)
    interact_model(**flags, prompt='x', length=3)
    assert [options['length'] for options in fake.options] == [48, 24, 3, 3]
    assert [context for _, _, context in fake.calls] == [[256], fake.encode('x')] * 2


def test_controls_reach_the_model(fake, flags):
    controls = {'temperature': 0.7, 'top_k': 40, 'top_p': 0.9, 'repetition_penalty': 1.2,
                'min_p': 0.1, 'typical_p': 0.8, 'no_repeat_ngram': 3, 'prompt_lookup': False}
    biases = ('5:-1.5', '256:+100', '5:2.')
    sample_model(**flags, nsamples=1, **controls, logit_bias=biases)
    interact_model(**flags, prompt='x', **controls, logit_bias=biases)
    controls['logit_bias'] = {5: 2, 256: 100}
    assert len(fake.options) == 2 and all(options.items() >= controls.items() for options in fake.options)


def test_a_seed_holds_for_every_prompt_and_none_is_a_new_one_each_time(fake, flags, monkeypatch):
    for seed in (7, None):
        type_in(monkeypatch, b'one\none\n')
        interact_model(**flags, seed=seed)
    first, second, third, fourth = [seed for _, seed, _ in fake.calls]
    assert first == second == 7
    assert third != fourth


# --beams

def test_beams_are_printed_best_first(models, flags, toy_model, capsys):
    """All, or nsamples of them, at once or in JSON lines."""
    controls = {'length': 10, 'repetition_penalty': 1.2, 'no_repeat_ngram': 4}
    context = toy_model.enc.encode('a prompt')
    rows = beam_search.search(toy_model, context, beams=3, stop=END, logit_bias={97: 2.5}, **controls)
    texts = [row.text for row in rows]
    assert len(set(texts)) > 1
    options = {**flags, **controls, 'beams': 3, 'truncate': END, 'logit_bias': ('97:2.5',)}
    assert drawn(capsys, interact_model, **options, prompt='a prompt', nsamples=3) == texts
    assert drawn(capsys, interact_model, **options, prompt='a prompt') == texts[:1]
    unconditional = drawn(capsys, sample_model, **options)
    assert len(unconditional) == 3 and unconditional[:2] == drawn(capsys, sample_model, **options, nsamples=2)


def test_beams_of_a_file_of_prompts(flags, toy_model, capsys, tmp_path):
    """Two for each prompt, and the same bytes after an interruption."""
    path, output = write_prompts(tmp_path / 'p.txt', ['a prompt', 'x', 'a prompt']), tmp_path / 'out.jsonl'
    options = {**flags, 'prompts_file': path, 'length': 6, 'beams': 4, 'nsamples': 2, 'logprobs': True,
               'output': str(output)}
    interact_model(**options)
    whole = output.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line['prompt'] for line in lines] == ['a prompt'] * 2 + ['x'] * 2 + ['a prompt'] * 2
    for line, row in zip(lines, 2 * beam_search.search(toy_model, toy_model.enc.encode('a prompt'), beams=4,
                                                       length=6)[:2], strict=False):
        if line['prompt'] == 'a prompt':
            assert (line['tokens'], line['text']) == (row.tokens, row.text)
            np.testing.assert_allclose(line['logprobs'], row.logprobs, atol=1e-5)
    assert lines[:2] == lines[4:]
    for n in range(6):
        output.write_bytes(b'\n'.join([*whole.split(b'\n')[:n], b'{"pro']))
        interact_model(**options)
        assert output.read_bytes() == whole


def test_beams_that_exceed_the_window_are_one_line(flags, capfd, tmp_path):
    said = refused(capfd, interact_model, *argv_of(flags), '--prompt', 'x' * 40, '--beams=2')
    assert 'a prompt of 40 tokens and 24 more exceed n_ctx, 48, where beams end; give a smaller' in said
    assert 'a prompt of 1 tokens and 49 more' in refused(capfd, sample_model, *argv_of(flags), '--length=49',
                                                         '--beams=2')
    assert len(drawn(capfd, sample_model, **flags, beams=2)) == 2  # of 48 tokens
    (tmp_path / 'p.txt').write_text('x\n' + 'x' * 40 + '\n')
    with pytest.raises(InputError, match='txt, line 2: a prompt of 40 tokens and 24 more exceed'):
        interact_model(**flags, beams=2, prompts_file=str(tmp_path / 'p.txt'))


# --output

@pytest.mark.parametrize('script, more', [(sample_model, {}), (interact_model, {'prompt': 'x'})])
def test_output_is_a_file_instead_of_stdout(fake, flags, capsys, tmp_path, script, more):
    script(**flags, **more, nsamples=2, output=str(tmp_path / 'out.txt'))
    assert capsys.readouterr() == ('', DEVICE)
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


def raise_at(fake, number, error):
    def raising(numbers):
        if number in numbers:
            raise error
    fake.before = raising


def test_on_ctrl_c_what_is_done_is_kept(fake, flags, tmp_path, monkeypatch):
    raise_at(fake, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        sample_model(**flags, nsamples=9, output=str(tmp_path / 'out.txt'))
    assert os.listdir(tmp_path) == ['out.txt']
    assert split_samples((tmp_path / 'out.txt').read_text()) == ['text 0', 'text 1']


@pytest.mark.usefixtures('fake')
def test_samples_before_a_wrong_prompt_are_kept(flags, tmp_path, monkeypatch):
    sample = LINE.format(1) + 'text 0\n' + '=' * 80 + '\n'
    for typed, expected in ((b'one\n\xff\n', sample), (b'\xff\n', 'old')):
        (tmp_path / 'out.txt').write_text('old')
        type_in(monkeypatch, typed)
        with pytest.raises(InputError, match='a byte that is not UTF-8'):
            interact_model(**flags, output=str(tmp_path / 'out.txt'))
        assert (tmp_path / 'out.txt').read_text() == expected


def test_on_an_error_the_old_file_is_kept(fake, flags, tmp_path, monkeypatch):
    (tmp_path / 'out.txt').write_text('old')
    raise_at(fake, 2, RuntimeError('fault'))
    with pytest.raises(RuntimeError):
        sample_model(**flags, nsamples=9, output=str(tmp_path / 'out.txt'))
    assert os.listdir(tmp_path) == ['out.txt'] and (tmp_path / 'out.txt').read_text() == 'old'


@pytest.mark.parametrize('output', ['', '.', 'folder', 'folder/', 'new/'])
@pytest.mark.parametrize('script, more', [(sample_model, {}), (interact_model, {'prompt': 'x'})])
def test_an_output_that_is_no_file_is_refused_before_anything_is_drawn(
    fake, flags, tmp_path, monkeypatch, script, more, output
):
    (tmp_path / 'folder').mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, OSError)):
        script(**flags, **more, nsamples=1, output=output)
    assert fake.calls == []
    assert os.listdir(tmp_path) == ['folder'] and os.listdir(tmp_path / 'folder') == []


@pytest.mark.parametrize('more', [{'prompt': 'x'}, {'prompts_file': 'prompts.txt'}])
def test_output_may_be_a_pipe_or_what_is_open_already(fake, flags, tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / 'prompts.txt')
    interact_model(**flags, **more)
    expected = capsys.readouterr().out
    os.mkfifo('pipe')
    for output in ('pipe', None):
        reading, descriptor = os.pipe()
        if output:
            os.close(reading)
            reading = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
        interact_model(**flags, **more, output=output or f'/dev/fd/{descriptor}')
        os.close(descriptor)
        assert os.read(reading, 10000).decode() == expected
        os.close(reading)
    assert sorted(os.listdir()) == ['pipe', 'prompts.txt'] and stat.S_ISFIFO(os.stat('pipe').st_mode)


def test_output_without_an_end_is_refused(flags, tmp_path):
    with pytest.raises(InputError, match='--output needs --nsamples'):
        sample_model(**flags, output=str(tmp_path / 'out.txt'))
    assert os.listdir(tmp_path) == []


# What is drawn

def test_batch_size_does_not_change_the_samples(flags, capsys):
    one, two, three = (
        drawn(capsys, sample_model, **flags, seed=3, nsamples=4, length=12, batch_size=batch_size)
        for batch_size in (1, 2, 3)
    )
    assert one == two == three
    assert len(set(one)) == 4


def test_batch_size_does_not_change_continuations(samples):
    one, two, three = (
        written(samples, 'a prompt', nsamples=5, batch_size=batch_size) for batch_size in (1, 2, 3)
    )
    assert one == two == three
    assert len(set(one[0])) == 5


def test_ids_without_a_text_are_not_drawn(tmp_path, capsys):
    """Nor do they end a batch; log-probabilities are of all ids."""
    hp, values = toy.write_padded_model(tmp_path / 'padded')
    flags = {'model_name': 'padded', 'models_dir': str(tmp_path), 'seed': 1, 'length': 20}
    assert len(drawn(capsys, sample_model, **flags, nsamples=4, batch_size=3)) == 4
    enc = get_encoder('padded', str(tmp_path))
    path = write_prompts(tmp_path / 'p.txt', ['x', 'The keeper'])
    for each in answers(capsys, **flags, prompts_file=path, nsamples=4, batch_size=3, logprobs=True):
        assert each['text'] == enc.decode(each['tokens'])
        context = enc.encode(each['prompt'])
        p = numpy_gpt2.softmax(numpy_gpt2.logits(values, context + each['tokens'], hp.n_head))
        expected = [np.log(p[len(context) - 1 + i, token]) for i, token in enumerate(each['tokens'])]
        np.testing.assert_allclose(each['logprobs'], expected, atol=1e-3)


def test_more_samples_begin_with_those_of_fewer(samples):
    assert written(samples, 'a prompt', nsamples=4)[0][:2] == written(samples, 'a prompt', nsamples=2)[0]


def test_a_prompt_and_seed_give_the_same_text_whatever_came_before(samples):
    first, other, again, once_more = written(samples, 'a prompt', 'another', 'a prompt', 'a prompt')
    assert first == again == once_more != other


def test_a_prompt_in_a_new_session_gives_the_same_text(samples, flags, capsys):
    assert drawn(capsys, interact_model, **flags, prompt='a prompt', seed=1, nsamples=2, length=8) == written(
        samples, 'a prompt')[0]


def test_other_seeds_and_none_give_other_samples(samples, monkeypatch):
    monkeypatch.setattr(generator, 'new_seed', iter(range(5, 9)).__next__)
    texts = [text for seed in (1, 2, 2**31, 2**63 - 1, None, None)
             for text in written(samples, 'a prompt', seed=seed)[0]]
    assert len(set(texts)) == len(texts) == 12


@pytest.mark.parametrize('seed', [2**63, 2**64])
def test_a_seed_beyond_63_bits_is_refused(samples, seed):
    with pytest.raises(OverflowError):  # the command line refuses it as a flag
        written(samples, 'a prompt', seed=seed)


def test_other_prompts_give_other_samples(samples):
    assert written(samples, 'a prompt') != written(samples, 'b prompt')


def greedy(directory, context, length):
    """The likeliest continuation, each token by a whole pass of model.model without a cache over what fits
    n_ctx; of
    what does not, by quarters of n_ctx, so much is left out at the beginning."""
    tokens, first = list(context), 0
    with tf.Graph().as_default(), tf.Session() as session:
        hparams = load_hparams(str(directory / 'hparams.json'))
        X = tf.placeholder(tf.int32, [1, None])
        best = tf.argmax(model.model(hparams, X)['logits'][0, -1])
        tf.train.Saver().restore(session, str(directory / 'model.ckpt'))
        for _ in range(length):
            if len(tokens) - first > hparams.n_ctx:
                first += hparams.n_ctx // 4
            tokens.append(int(session.run(best, {X: [tokens[first:]]})))
    return tokens[len(context):]


@pytest.mark.parametrize('prompt', ['a prompt', 'b'])
def test_temperature_0_is_the_greedy_continuation(models, toy_model, enc, prompt):
    context = enc.encode(prompt)
    expected = greedy(models / 'toy', context, 40)
    assert len(set(expected)) > 10
    found = toy_model.complete([context] * 2, [[1], [2]], length=40, temperature=0)
    assert [row.tokens for row in found] == [expected] * 2


@pytest.mark.parametrize('length', [30, 100])  # 100 are beyond the window, which slides
def test_unconditional_samples_continue_the_end_of_text(flags, models, capsys, enc, length):
    expected = greedy(models / 'toy', [256], length)
    assert len(set(expected)) > 10
    assert drawn(capsys, sample_model, **flags, length=length, temperature=0, nsamples=1) == [
        enc.decode(expected)
    ]


@pytest.mark.parametrize('likeliest', [{'top_k': 1}, {'top_p': 1e-9}, {'temperature': 1e-40}])
def test_what_leaves_only_the_likeliest_token_is_greedy(models, toy_model, likeliest):
    expected = greedy(models / 'toy', [256], 20)
    found = toy_model.complete([[256]] * 2, [[1], [2]], length=20, **likeliest)
    assert [row.tokens for row in found] == [expected] * 2


def test_a_prompt_longer_than_the_window_is_cut_from_its_end_which_is_told(samples, capsys):
    prompt = ''.join(map(chr, range(40, 40 + 58)))
    whole = written(samples, prompt)
    assert capsys.readouterr().err == ('the prompt has 58 tokens; its last 48 are used\n')
    assert whole == written(samples, prompt[-48:]) != written(samples, prompt[-47:])
    assert capsys.readouterr().err == ''


def test_nothing_is_added_to_the_graph_but_by_the_first_of_a_batch_size(models):
    samples = make(models)
    operations = samples.model.session.graph.get_operations
    counts = [len(operations())]
    for batch_size in (2, 1, 2, 1):
        written(samples, 'a prompt', 'another', batch_size=batch_size, nsamples=4)
        counts.append(len(operations()))
    assert counts[0] < counts[1] < counts[2] == counts[3] == counts[4]


def test_a_run_directory_is_a_model_directory(models, flags, capsys, tmp_path):
    run = tmp_path / 'checkpoint' / 'run1'
    run.mkdir(parents=True)
    for name in ('hparams.json', 'encoder.json', 'vocab.bpe'):
        shutil.copy(models / 'toy' / name, run)
    for suffix in ('data-00000-of-00001', 'index', 'meta'):
        shutil.copy(models / 'toy' / f'model.ckpt.{suffix}', run / f'model-70.{suffix}')
    (run / 'checkpoint').write_text(
        'model_checkpoint_path: "model-70"\nall_model_checkpoint_paths: "model-70"\n'
    )
    (run / 'counter').write_text('70\n')
    text = drawn(
        capsys, sample_model, model_name='run1', models_dir=str(tmp_path / 'checkpoint'), nsamples=1, seed=1
    )
    assert text == drawn(capsys, sample_model, **flags, nsamples=1, seed=1)


def test_a_piped_prompt_is_answered_with_nothing_but_samples_on_stdout(models, samples):
    script = os.path.abspath(interactive_conditional_samples.__file__)
    done = subprocess.run(
        [
            sys.executable,
            script,
            '--model_name',
            'toy',
            '--models_dir',
            str(models),
            '--seed=1',
            '--length',
            '8',
            '--nsamples',
            '2',
        ],
        input=b'a prompt\n',
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr.decode()) == (0, ASKED + DEVICE + ASKED + '\n')
    out = done.stdout.decode()
    assert out.endswith('=' * 80 + '\n')
    assert split_samples(out.removesuffix('=' * 80 + '\n')) == written(samples, 'a prompt')[0]


# --prompts_file

PROMPTS = [
    'a prompt',
    'é',
    'one that is longer than all of the others',
    '日本',
    'a prompt',
    '"quoted" \\ and\ttab',
]


def write_prompts(path, prompts=PROMPTS, end='\n'):
    """As JSON lines or as lines, as the file's name says; returns the path as the flag takes it."""
    lines = [
        json.dumps({'n': 1, 'prompt': prompt}) if path.suffix == '.jsonl' else prompt for prompt in prompts
    ]
    path.write_bytes(''.join(line + end for line in lines).encode())
    return str(path)


def answers(capsys, **flags):
    """The objects that interact_model prints for a file of prompts."""
    interact_model(**flags)
    return [json.loads(line) for line in capsys.readouterr().out.removesuffix('\n').split('\n')]


@pytest.mark.parametrize(
    'name, end', [('p.txt', '\n'), ('p.txt', '\r\n'), ('p.jsonl', '\n'), ('p.jsonl', '\r\n')]
)
def test_a_file_of_prompts_is_answered_in_json_lines(fake, flags, tmp_path, capsys, name, end):
    path = write_prompts(tmp_path / name, end=end)
    fake.texts = ['häß 日本. z', 'q']
    interact_model(**flags, prompts_file=path, stop='.', batch_size=4)
    lines = capsys.readouterr().out.splitlines()
    expected = (
        [('häß 日本', True)] * 4 + [('q', False)] + [('häß 日本', True)]
    )  # a repeated prompt: its next sample
    assert [json.loads(line) for line in lines] == [
        {
            'prompt': prompt,
            'text': text,
            'tokens': fake.encode('häß 日本.' if finished else 'q'),
            'finished': finished,
        }
        for prompt, (text, finished) in zip(PROMPTS, expected, strict=True)
    ]
    assert lines[3].startswith('{"prompt": "日本", "text": "häß 日本", "tokens": [')
    assert [numbers for numbers, _, _ in fake.calls] == [[0, 0, 0, 0], [1, 0]]


@pytest.mark.parametrize(
    'content, prompts',
    [
        ('one', ['one']),
        ('one\ntwo', ['one', 'two']),
        (' one \n', [' one ']),
        ('{"prompt": 3}\n', ['{"prompt": 3}']),
        ('{"prompt": "one"}\n{"text": "", "prompt": "t\\nwo"}\n', ['one', 't\nwo']),
        ('a\x0cb\u2028c\rd\n', ['a\x0cb\u2028c\rd']),
        ('\ufeffone\r\ntwo\r', ['one', 'two']),
        ('\ufeff{"prompt": "one\\r"}\r\n', ['one\r']),
        ('one\n{"prompt": "two"}\n', ['one', '{"prompt": "two"}']),
        ('"one"\n', ['"one"']),
    ],
)
def test_what_the_prompts_of_a_text_file_are(fake, flags, tmp_path, capsys, content, prompts):
    (tmp_path / 'p.txt').write_bytes(content.encode())
    assert [
        each['prompt'] for each in answers(capsys, **flags, prompts_file=str(tmp_path / 'p.txt'))
    ] == prompts


def test_prompts_of_several_lengths_are_answered_as_each_is_alone(samples, flags, tmp_path, capsys, enc):
    path = write_prompts(tmp_path / 'p.txt')
    found = answers(capsys, **flags, prompts_file=path, seed=1, length=8, nsamples=2, batch_size=3)
    assert [each['prompt'] for each in found] == [prompt for prompt in PROMPTS for _ in range(2)]
    seen = []
    for prompt, each in zip([prompt for prompt in PROMPTS for _ in range(2)], found, strict=True):
        alone = written(samples, prompt, nsamples=4)[0]
        assert each['text'] == alone[seen.count(prompt)] == enc.decode(each['tokens'])
        seen.append(prompt)
    assert len({each['text'] for each in found if each['prompt'] == 'a prompt'}) == 4  # it is there twice


def test_logprobs_are_those_of_the_tokens(models, flags, tmp_path, capsys, enc):
    path = write_prompts(tmp_path / 'p.txt', ['a', 'a longer prompt'])
    found = answers(
        capsys,
        **flags,
        prompts_file=path,
        seed=1,
        length=8,
        batch_size=2,
        temperature=0.8,
        top_k=30,
        logprobs=True,
    )
    reader = tf.train.load_checkpoint(str(models / 'toy'))
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    for each in found:
        context = enc.encode(each['prompt'])
        p = numpy_gpt2.softmax(numpy_gpt2.logits(values, context + each['tokens'], SIZES['n_head']))
        expected = [np.log(p[len(context) - 1 + i, token]) for i, token in enumerate(each['tokens'])]
        np.testing.assert_allclose(each['logprobs'], expected, atol=1e-3)


def test_a_prompt_of_a_file_that_is_longer_than_the_window_is_named(fake, flags, tmp_path, capsys):
    path = write_prompts(tmp_path / 'p.txt', ['one', 'x' * 20 + 'y' * 48])
    interact_model(**flags, prompts_file=path)
    assert f'{path}, line 2: the prompt has 68 tokens; its last 48 are used' in capsys.readouterr().err
    assert fake.calls[1][2] == fake.encode('x' * 20 + 'y' * 48)  # `stream` cuts it


BAD_FILES = [
    ('p.txt', b'', 'holds no prompt'),
    ('p.txt', b'\n', 'holds no prompt'),
    ('p.jsonl', b'', 'holds no prompt'),
    ('p.txt', b'one\n\ntwo\n', 'line 2: expected a prompt, not'),
    ('p.txt', b'one\n\r\n', 'line 2: expected a prompt, not'),
    ('p.txt', b'one\ntwo\n\n', 'line 3: expected a prompt, not'),
    ('p.txt', b'one\ntw\xffo\n', 'not utf-8 at byte 6; convert it'),
    ('p.txt', b'one\n\xe6\x97', 'not utf-8 at byte 4; convert it'),
    ('p.jsonl', b'{"prompt": "a"}\n{"prompt": }\n', 'line 2: expected a JSON object with a text as "prompt"'),
    ('p.jsonl', b'{"prompt": "a"}\n\n', 'line 2: expected a JSON object'),
    ('p.jsonl', b'one\n', 'line 1: expected'),
    ('p.jsonl', b'{"prompt": "a"}\n["a"]\n', 'line 2: expected a JSON object'),
    ('p.jsonl', b'{"prompt": 3}\n', 'line 1: expected a JSON object'),
    ('p.jsonl', b'{}\n', 'line 1: expected'),
    ('p.jsonl', b'{"prompt": "a"}\n{"prompt": ""}\n', 'line 2: expected a JSON object'),
    ('p.jsonl', b'[' * 100000 + b'\n', 'line 1: expected a JSON object'),
    ('p.txt', b'{"prompt": "a"}\ntwo\n', 'line 2: expected a JSON object'),
    ('p.jsonl', b'{"prompt": "a"}\n{"prompt": "b\\ud800"}\n', 'line 2'),
    ('p.txt', b'\x1f\x8b\x08\0', 'this is a packed or binary file'),
]


@pytest.mark.parametrize('name, content, message', BAD_FILES)
@pytest.mark.usefixtures('fake')
def test_a_file_of_prompts_that_cannot_be_used_is_refused_and_nothing_is_written(
    flags, capfd, tmp_path, name, content, message
):
    (tmp_path / name).write_bytes(content)
    said = refused(capfd, interact_model, *argv_of(flags), '--prompts_file', tmp_path / name, '--output',
                   tmp_path / 'out.jsonl')
    assert f'{tmp_path / name}' in said and message in said and len(said) < 300 + len(str(tmp_path))
    assert os.listdir(tmp_path) == [name]


def test_prompts_may_come_from_a_pipe_but_not_without_end(fake, flags, capsys):
    reading, writing = os.pipe()
    os.write(writing, b'one\ntwo\n')
    os.close(writing)
    assert [each['prompt'] for each in answers(capsys, **flags, prompts_file=f'/dev/fd/{reading}')] == [
        'one',
        'two',
    ]
    os.close(reading)
    with pytest.raises(InputError, match='/dev/zero is a pipe or a device; give a file'):
        interact_model(**flags, prompts_file='/dev/zero')


@pytest.mark.parametrize('name', ['nowhere.txt', '.', 'nowhere/p.txt'])
@pytest.mark.usefixtures('fake')
def test_a_file_of_prompts_that_is_not_there_is_named(flags, capfd, tmp_path, name):
    assert str(tmp_path / name) in refused(
        capfd,
        interact_model,
        *argv_of(flags),
        '--prompts_file',
        tmp_path / name,
        '--output',
        tmp_path / 'out.jsonl',
    )
    assert os.listdir(tmp_path) == []


def test_a_model_of_one_position_continues_prompts_by_a_token(tmp_path):
    toy.write_model(tmp_path / 'one', toy.hparams(n_ctx=1))
    drawn = sampling.SampleWriter(
        SamplingFlags(model_name='one', models_dir=str(tmp_path)), unconditional=False
    )
    assert len(drawn.model.complete([[5]], [[1]], **drawn.options)[0].tokens) == 1


@pytest.mark.parametrize('output', ['./p.jsonl', 'folder/../p.jsonl', 'link', 'hard_link'])
def test_the_file_of_the_prompts_is_no_output(fake, flags, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder').mkdir()
    text = '{"prompt": "a"}\n{"prompt'  # as an answer begins, and one that was cut off
    (tmp_path / 'p.jsonl').write_text(text, encoding='utf-8')
    (tmp_path / 'link').symlink_to('p.jsonl')
    (tmp_path / 'hard_link').hardlink_to('p.jsonl')
    with pytest.raises(InputError, match=f'--output {output} is the file of the prompts; name another'):
        interact_model(**flags, prompts_file=str(tmp_path / 'p.jsonl'), output=output)
    assert (tmp_path / 'p.jsonl').read_text(encoding='utf-8') == text


@pytest.mark.parametrize('output', ['.', 'folder', 'folder/', 'new/out'])
def test_an_output_for_prompts_that_is_no_file_is_refused(fake, flags, tmp_path, monkeypatch, output):
    (tmp_path / 'folder').mkdir()
    path = write_prompts(tmp_path / 'p.txt')
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, OSError)):
        interact_model(**flags, prompts_file=path, output=output)
    assert fake.calls == []
    assert sorted(os.listdir(tmp_path)) == ['folder', 'p.txt'] and os.listdir(tmp_path / 'folder') == []


# Going on where the output ends

@pytest.mark.parametrize('options', [{'nsamples': 2, 'batch_size': 3}, {}])
def test_cut_at_any_byte_the_output_becomes_that_of_an_undisturbed_run(fake, flags, tmp_path, options):
    path, output = write_prompts(tmp_path / 'p.txt'), tmp_path / 'out.jsonl'
    fake.texts = ['häß 日本', '😀', 'c', 'd']
    options = {**flags, 'prompts_file': path, 'output': str(output), 'seed': 1, **options}
    interact_model(**options)
    whole = output.read_bytes()
    assert whole.count(b'\n') == len(PROMPTS) * options.get('nsamples', 1)
    for cut in range(len(whole) + 1):
        output.write_bytes(whole[:cut])
        fake.calls.clear()
        interact_model(**options)
        assert output.read_bytes() == whole
        n_done, n, batch_size = whole[:cut].count(b'\n'), whole.count(b'\n'), options.get('batch_size', 1)
        batches = [range(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]
        # Batches that are there as a whole are not drawn again.
        assert [len(numbers) for numbers, _, _ in fake.calls] == [
            len(each) for each in batches if each[-1] >= n_done
        ]


def test_a_long_output_is_gone_on_with_too(fake, flags, tmp_path):
    """Of more than is read at a time, cut within a character."""
    path, output = (
        write_prompts(tmp_path / 'p.txt', [f'{i} 日本' for i in range(500)]),
        tmp_path / 'out.jsonl',
    )
    fake.texts = ['häß 日本 ' * 3]
    options = {**flags, 'prompts_file': path, 'output': str(output), 'seed': 1, 'batch_size': 100}
    interact_model(**options)
    whole = output.read_bytes()
    for cut in (len(whole) - 2, whole.rindex('日'.encode()) + 1, len(whole) // 2, 10000, 8192):
        output.write_bytes(whole[:cut])
        interact_model(**options)
        assert output.read_bytes() == whole


@pytest.fixture(scope='module', params=WEIGHT_PRECISIONS)
def of_a_precision(request, models):
    return request.param, make(models, precision=request.param, nsamples=3, length=12)


def test_a_model_goes_on_as_it_would_have_in_every_precision(of_a_precision, tmp_path, monkeypatch):
    """To the byte, with log-probabilities: cut after lines that end no batch, or stopped within one."""
    path, output = write_prompts(tmp_path / 'p.txt', PROMPTS[:3]), tmp_path / 'out.jsonl'
    precision, samples = of_a_precision
    texts = {}
    for batch_size in (1, 2, 3, 8):
        monkeypatch.setattr(samples, 'batch_size', batch_size)
        samples.complete(path, str(output), logprobs=True)
        lines = output.read_bytes().splitlines(keepends=True)
        texts[batch_size] = [json.loads(line)['text'] for line in lines]
        assert len(set(texts[batch_size])) == 9
        for n in (1, 4, 7):
            output.write_bytes(b''.join(lines[:n]) + b'{"prompt": "')
            samples.complete(path, str(output), logprobs=True)
            assert output.read_bytes() == b''.join(lines)
        output.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(sampling, 'as_json', failing_after(5))
            with pytest.raises(KeyboardInterrupt):
                samples.complete(path, str(output), logprobs=True)
        assert output.read_bytes() == b''.join(lines[:5])
        samples.complete(path, str(output), logprobs=True)
        assert output.read_bytes() == b''.join(lines)
        output.unlink()
    if precision == 'float32':
        assert texts[1] == texts[2] == texts[3] == texts[8]


def failing_after(n):
    """as_json, interrupted at the line after n."""
    numbers = itertools.count()

    def function(*arguments):
        if next(numbers) == n:
            raise KeyboardInterrupt
        return as_json(*arguments)
    as_json = sampling.as_json
    return function


def test_an_error_keeps_what_is_written_so_that_the_next_start_goes_on(fake, flags, tmp_path):
    path, output = write_prompts(tmp_path / 'p.txt'), tmp_path / 'out.jsonl'
    options = {**flags, 'prompts_file': path, 'output': str(output), 'seed': 1}
    interact_model(**options)
    whole = output.read_bytes()
    for error in (RuntimeError('fault'), KeyboardInterrupt()):
        output.unlink()
        raise_at(fake, 1, error)  # the second sample of 'a prompt'
        with pytest.raises(type(error)):
            interact_model(**options)
        assert output.read_bytes() == b''.join(whole.splitlines(keepends=True)[:4])
        fake.before = lambda _: None
        interact_model(**options)
        assert output.read_bytes() == whole


@pytest.mark.parametrize('lines', [
    ['{"prompt": "other", "text": ""}'], ['{"prompt": "a prompt", "text": ""}'] * 2, ['a prompt'],
    ['{"prompt": "a prompt"}', *(f'{{"prompt": "{each}"}}' for each in 'bcd')]])
def test_an_output_that_belongs_to_other_prompts_is_refused_and_kept(fake, flags, capfd, tmp_path, lines):
    path, output = write_prompts(tmp_path / 'p.txt', ['a prompt', 'b', 'c']), tmp_path / 'out.jsonl'
    before = ''.join(line + '\n' for line in lines) + '{"prom'
    output.write_text(before)
    said = refused(capfd, interact_model, *argv_of(flags), '--prompts_file', path, '--output', output)
    assert f'--output {output} does not answer these prompts; name another' in said
    assert output.read_text() == before and fake.calls == []


@pytest.mark.parametrize('before', [
    'notes', '{"prompt": "b', '{"prompt": "a"}\nnotes',
    '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\nn'])
def test_an_end_that_begins_no_answer_is_refused_and_kept(fake, flags, tmp_path, before):
    path, output = write_prompts(tmp_path / 'p.txt', ['a', 'b', 'c']), tmp_path / 'out.jsonl'
    output.write_text(before)
    with pytest.raises(InputError, match='does not answer these prompts; name another'):
        interact_model(**flags, prompts_file=path, output=str(output))
    assert output.read_text() == before and fake.calls == []


def test_fewer_beams_than_samples_for_a_prompt_of_a_file_are_told(tmp_path):
    toy.write_model(tmp_path / 'toy')
    path = write_prompts(tmp_path / 'p.txt', ['a'])
    with pytest.raises(InputError, match=r'p\.txt, line 1: beam search finds \d+ texts; give a smaller'):
        interact_model(model_name='toy', models_dir=str(tmp_path), prompts_file=path, length=1, beams=600,
                       nsamples=600)


def test_an_output_that_is_no_text_is_refused_and_kept(fake, flags, capfd, tmp_path):
    path, output = write_prompts(tmp_path / 'p.txt'), tmp_path / 'out.jsonl'
    output.write_bytes(b'\xff\xfe\0\n\n')
    assert str(output) in refused(
        capfd, interact_model, *argv_of(flags), '--prompts_file', path, '--output', output
    )
    assert output.read_bytes() == b'\xff\xfe\0\n\n' and fake.calls == []


def test_kill_9_and_a_new_start_give_the_output_of_an_undisturbed_run(flags, tmp_path):
    """A real process, killed after its first lines."""
    path = write_prompts(tmp_path / 'p.txt', [f'prompt {i} 日本' for i in range(60)])
    options = {**flags, 'prompts_file': path, 'seed': 1, 'length': 12, 'batch_size': 2, 'logprobs': True}
    killed, whole = tmp_path / 'killed.jsonl', tmp_path / 'whole.jsonl'
    script = os.path.abspath(interactive_conditional_samples.__file__)
    process = subprocess.Popen([sys.executable, script, *argv_of(options), f'--output={killed}'],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (killed.exists() and killed.stat().st_size):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < killed.read_bytes().count(b'\n') < 60
    interact_model(**options, output=str(killed))
    interact_model(**options, output=str(whole))
    lines = [[json.loads(line) for line in file.read_text('utf-8').splitlines()] for file in (killed, whole)]
    values = [[each.pop('logprobs') for each in some] for some in lines]
    assert lines[0] == lines[1] and len(lines[0]) == 60
    np.testing.assert_allclose(
        *values, atol=1e-4
    )  # this process may compile for another processor's instructions


# --stop, and what is printed while it is drawn

class Pieces(io.StringIO):
    """A file that keeps what is written to it, piece by piece."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text):
        if text:
            self.pieces.append(text)
        return super().write(text)


@pytest.mark.parametrize('text, stop, shown', [
    ('häß 日本 😀', (), 'häß 日本 😀'), ('one STOP two', ('STOP',), 'one '),
    ('one STO two', ('STOP', '!'), 'one STO two'),
    ('one ST', ('STOP',), 'one ST'), ('日日本', ('日本',), '日'), ('STOP', ('STOP',), ''),
    ('a b\nc', ('\n', 'c'), 'a b'), (f'one{END}two', (END,), 'one')])
def test_what_is_streamed_is_what_is_printed_at_the_end(fake, models, monkeypatch, text, stop, shown):
    fake.texts = [text]
    samples = make(models, nsamples=1, stop=stop)
    streamed, whole = Pieces(), io.StringIO()
    monkeypatch.setattr(sys, 'stdout', streamed)
    samples.write(streamed, 'x', prefix='> ')
    samples.write(whole, 'x', prefix='> ')
    assert streamed.getvalue() == whole.getvalue() == LINE.format(1) + f'> {shown}\n'
    assert len(streamed.pieces) > len(shown) / 2  # and not all at once


@pytest.mark.parametrize('prompt', [None, 'a prompt'])
def test_a_models_samples_are_streamed_as_they_are_written_at_once(samples, monkeypatch, prompt):
    monkeypatch.setitem(samples.options, 'length', 40)
    monkeypatch.setitem(samples.options, 'stop', ('e', 'a'))
    monkeypatch.setitem(vars(samples), 'nsamples', 1)
    streamed, whole = Pieces(), io.StringIO()
    monkeypatch.setattr(sys, 'stdout', streamed)
    samples.write(streamed, prompt, prefix='é')
    samples.write(whole, prompt, prefix='é')
    assert streamed.getvalue() == whole.getvalue()
    assert len(streamed.pieces) > len(split_samples(whole.getvalue())[0]) / 2


def test_several_stops_and_truncate_may_be_given(fake, capsys, flags):
    fake.texts = ['one. two; three']
    for argv, text in ((['--stop', ';', '--stop', 'thr'], 'one. two'), (['--stop=thr', '--stop=.'], 'one'),
                       (['--stop=thr', '--truncate=two'], 'one. '), (['--stop=2019'], 'one. two; three')):
        cli.run(interact_model, ['--prompt=x', *argv_of(flags), *argv])
        assert split_samples(capsys.readouterr().out) == [text]
    assert [options['stop'] for options in fake.options] == [
        (';', 'thr'),
        ('thr', '.'),
        ('thr', 'two'),
        ('2019',),
    ]


def test_a_stop_may_be_cut_into_tokens_anywhere(samples, enc):
    """Of a model's own text, any part of it as a stop ends it there."""
    (row,) = samples.model.complete([enc.encode('a prompt')], [[1, 0]], length=20)
    for first in range(0, len(row.text), 3):
        stop = row.text[first:first + 3]
        (stopped,) = samples.model.complete([enc.encode('a prompt')], [[1, 0]], length=20, stop=(stop,))
        assert stopped.text == row.text[:row.text.index(stop)] and stopped.finished
        assert stopped.tokens == row.tokens[:len(stopped.tokens)]


# Ctrl-C

def interrupt_at(fake, text):
    def after(row):
        if row.text == text:  # whose last character has not been printed yet
            fake.after = lambda _: None
            raise KeyboardInterrupt
    fake.after = after


@pytest.mark.parametrize('output', [False, True])
def test_at_a_terminal_ctrl_c_ends_a_sample_and_not_the_session(
    fake, flags, capsys, monkeypatch, tmp_path, output
):
    type_in(monkeypatch, b'one\ntwo\n', isatty=True)
    interrupt_at(fake, 'tex')
    interact_model(**flags, nsamples=2, output=str(tmp_path / 'out.txt') if output else None)
    said = capsys.readouterr()
    found = (tmp_path / 'out.txt').read_text() if output else said.out
    first, second = found.removesuffix('=' * 80 + '\n').split('=' * 80 + '\n')
    assert first == ('' if output else LINE.format(1) + 'te\n')
    assert second == LINE.format(1) + 'text 0\n' + LINE.format(2) + 'text 1\n'
    assert said.err == ASKED + DEVICE + ASKED * 2 + '\n'


def test_in_a_pipe_ctrl_c_ends_the_script_with_130(fake, flags, capsys, monkeypatch):
    type_in(monkeypatch, b'one\ntwo\n')
    interrupt_at(fake, 'tex')
    with pytest.raises(SystemExit) as stopped:
        cli.run(interact_model, argv_of(flags))
    assert stopped.value.code == 130
    assert capsys.readouterr() == (LINE.format(1) + 'te\n', ASKED + DEVICE)


@pytest.mark.parametrize('script, argv', [(sample_model, []), (interact_model, ['--prompt=x'])])
def test_ctrl_c_ends_a_script_that_asks_nothing_with_130(fake, flags, capsys, script, argv):
    interrupt_at(fake, 'tex')
    with pytest.raises(SystemExit) as stopped:
        cli.run(script, [*argv_of(flags), *argv])
    assert stopped.value.code == 130
    assert capsys.readouterr() == (LINE.format(1) + 'te\n', DEVICE)


def test_after_ctrl_c_a_model_draws_what_it_would_have_drawn(samples, monkeypatch):
    expected = written(samples, 'a prompt')
    run = generator.Generator.run

    def interrupted(self, *arguments, **options):
        if self.n_past == 12:
            raise KeyboardInterrupt
        return run(self, *arguments, **options)
    with monkeypatch.context() as patch:
        patch.setattr(generator.Generator, 'run', interrupted)
        with pytest.raises(KeyboardInterrupt):
            written(samples, 'a prompt')
    assert written(samples, 'a prompt') == expected


# What is refused

@pytest.mark.parametrize('argv, message', [
    (['--length', '0'], 'length must be 1 or more, not 0'),
    (['--length=-1'], 'length must be 1 or more, not -1'),
    (['--temperature=-0.1'], 'temperature must be'),
    (['--top_k=-1'], 'top_k must be'),
    (['--top_p=1.1'], 'top_p must be'),
    (['--top_p=-0.1'], 'top_p must be'),
    (['--min_p=1.1'], 'min_p must be from 0 to 1, not 1.1'),
    (['--typical_p=-0.1'], 'typical_p must be from 0 to 1, not -0.1'),
    (['--no_repeat_ngram=-1'], '--no_repeat_ngram must be 0 or more, not -1'),
    (['--logit_bias=5'], "--logit_bias must be ID:BIAS, such as 50256:-100, not '5'"),
    (['--logit_bias', '9999:-1'],
     'logit_bias must be of ids below 257 and numbers up to 1,000,000, not 9999:-1'),
    (['--beams=-1'], '--beams must be 0 or more, not -1'),
    (['--beams=3', '--top_k=40', '--seed=1'], '--beams draws nothing at random; leave out --seed, --top_k'),
    (['--nsamples=-1'], '--nsamples must be'),
    (['--batch_size=0'], '--batch_size must be'),
    (['--batch_size=-1'], '--batch_size must be'),
    (['--seed=-1'], '--seed must be'),
    (['--repetition_penalty=0'], 'repetition_penalty must be above 0, not 0'),
    (['--repetition_penalty=-1'], 'repetition_penalty must be above 0, not -1'),
    (['--precision=float16'], "precision must be one of float32, tf32, bfloat16, int8, not 'float16'"),
    (['--truncate='], '--stop and --truncate need a text'),
    (['--stop='], '--stop and --truncate need a text'),
    (['--stop', 'a', '--stop='], '--stop and --truncate need a text'),
    (['--model_name=absent'], 'no model directory'),
    (['--model_name=../toy'], 'no folder ../toy'),
])
@pytest.mark.parametrize('script, more', [(sample_model, ['--nsamples=1']), (interact_model, ['--prompt=x'])])
def test_a_flag_out_of_range_is_one_line_and_status_2(models, capfd, script, more, argv, message):
    given = ['--models_dir', models, *([] if '--model_name' in argv[0] else ['--model_name=toy'])]
    more = [] if '--nsamples' in argv[0] and script is sample_model else more
    assert message in refused(capfd, script, *given, *more, *argv)


@pytest.mark.parametrize('argv, message', [
    (['--prompt='], '--prompt is empty'), (['--prompt', 'x\udcff'], 'offset 1'),
    (['--nsamples=0'], '--nsamples must be 1 or more'),
    (['--prompt=x', '--prompts_file=y'], 'give --prompt or --prompts_file, not both'),
    (['--prompt=x', '--logprobs'], '--logprobs needs --prompts_file'),
    (['--prompts_file=x', '--include_prefix'], '--include_prefix is for text')])
def test_a_prompt_that_cannot_be_continued_is_one_line_and_status_2(models, capfd, argv, message):
    assert message in refused(capfd, interact_model, '--model_name=toy', '--models_dir', models, *argv)


def test_a_piped_prompt_that_cannot_be_continued_ends_the_script_in_one_line(models, capfd, monkeypatch):
    type_in(monkeypatch, b'ab\xffc\nx\n')
    assert 'offset 2' in refused(capfd, interact_model, '--model_name=toy', '--models_dir', models)


def test_a_person_at_a_terminal_is_asked_again(flags, capsys, monkeypatch):
    type_in(monkeypatch, b'ab\xffc\nx\n', isatty=True)
    interact_model(**flags, seed=1)
    said = capsys.readouterr()
    answer, rest = said.out.split('=' * 80 + '\n', 1)
    assert answer == '' and len(split_samples(rest.removesuffix('=' * 80 + '\n'))) == 1
    assert re.fullmatch(rf'{ASKED}the character at offset 2 .*\n{ASKED}{DEVICE}{ASKED}\n', said.err)


def test_the_defaults_are_the_originals_and_what_is_new_changes_nothing():
    defaults = defaults_of(sample_model)
    assert defaults == {
        'model_name': '124M',
        'seed': None,
        'nsamples': 0,
        'batch_size': 1,
        'length': None,
        'temperature': 1,
        'top_k': 0,
        'top_p': 1,
        'min_p': 0,
        'typical_p': 1,
        'no_repeat_ngram': 0,
        'logit_bias': (),
        'beams': 0,
        'models_dir': 'models',
        'checkpoint': None,
        'precision': 'float32',
        'repetition_penalty': 1,
        'prompt_lookup': True,
        'truncate': None,
        'stop': (),
        'output': None,
        'checkpoint_dir': 'checkpoint',
    }
    other = defaults_of(interact_model)
    assert other == {**defaults, 'nsamples': 1, 'prompt': None, 'prompts_file': None, 'logprobs': False,
                     'include_prefix': False, 'special_tokens': False, 'template': None}


def defaults_of(function):
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


# Model directories that are not whole

@pytest.fixture
def damaged(models, tmp_path):
    """A copy of the model, to be damaged, named `bad`."""
    return shutil.copytree(models / 'toy', tmp_path / 'models' / 'bad')


def complaint(capfd, directory):
    return refused(capfd, sample_model, '--model_name', directory.name, '--models_dir', directory.parent,
                   '--nsamples=1', '--seed=1', '--length=4')


@pytest.mark.parametrize(
    'name',
    [
        'hparams.json',
        'encoder.json',
        'vocab.bpe',
        'checkpoint',
        'model.ckpt.index',
        'model.ckpt.data-00000-of-00001',
    ],
)
def test_a_missing_file_is_named(damaged, capfd, name):
    (damaged / name).unlink()
    assert str(damaged) in (said := complaint(capfd, damaged)) and name in said


@pytest.mark.parametrize('name', ['hparams.json', 'encoder.json', 'vocab.bpe', 'checkpoint'])
def test_a_file_of_other_bytes_is_named(damaged, capfd, name):
    (damaged / name).write_bytes(b'\xff\xfe\0garbage\n\n')
    assert str(damaged / name) in complaint(capfd, damaged)


@pytest.mark.parametrize(
    'content, message',
    [
        ('', 'is not JSON'),
        ('{"n_vocab": 257', 'is not JSON'),
        ('[' * 100000, 'is not JSON'),
        ('[257, 48, 32, 2, 2]', 'must hold an object'),
        ('null', 'must hold an object'),
        ({'n_head': None}, 'n_head must be a whole number from 1 to '),
        ({'n_head': '2'}, 'n_head must be a whole number'),
        ({'n_ctx': 48.0}, 'n_ctx must be a whole number'),
        ({'n_layer': 0}, 'n_layer must be a whole number from 1 to '),
        ({'n_head': 3}, 'n_embd (32) must be divisible by n_head (3)'),
        ({'n_heads': 2}, "'n_heads'"),
    ],
)
def test_hparams_that_make_no_model_are_refused(damaged, capfd, content, message):
    if isinstance(content, dict):
        content = json.dumps(
            {'n_vocab': 257, 'n_ctx': 48, 'n_embd': 32, 'n_head': 2, 'n_layer': 2, **content}
        )
    (damaged / 'hparams.json').write_text(content)
    said = complaint(capfd, damaged)
    assert str(damaged / 'hparams.json') in said and message in said


@pytest.mark.parametrize('name', ['n_vocab', 'n_ctx', 'n_embd', 'n_head', 'n_layer'])
def test_hparams_that_lack_a_size_are_refused(damaged, capfd, name):
    values = json.loads((damaged / 'hparams.json').read_text())
    del values[name]
    (damaged / 'hparams.json').write_text(json.dumps(values))
    assert f'{damaged}/hparams.json lacks {name}' in complaint(capfd, damaged)


@pytest.mark.parametrize(
    'sizes, message',
    [
        ({'n_embd': 64}, 'is float32 [48, 32], but hparams.json makes it float32 [48, 64]'),
        ({'n_ctx': 64}, 'model/wpe is float32'),
        ({'n_vocab': 300}, 'model/wte is float32 [257, 32], but hparams.json makes it float32 [300, 32]'),
        ({'n_layer': 3}, 'is missing, but hparams.json makes it float32'),
        ({'n_layer': 1}, 'has more layers than hparams.json'),
        ({'n_vocab': 200}, 'encoder.json has 257 ids'),
    ],
)
def test_hparams_that_are_not_those_of_the_checkpoint_are_refused(damaged, capfd, sizes, message):
    values = json.loads((damaged / 'hparams.json').read_text())
    (damaged / 'hparams.json').write_text(json.dumps({**values, **sizes}))
    said = complaint(capfd, damaged)
    assert str(damaged) in said and message in said


@pytest.mark.parametrize(
    'content',
    ['#version: 0.2\na b c\n', '#version: 0.2\nab\n', '#version: 0.2\na b\n\nc d\n', '#version: 0.2\na b\n'],
)
def test_merges_that_cannot_be_used_are_refused(damaged, capfd, content):
    (damaged / 'vocab.bpe').write_text(content)
    assert str(damaged / 'vocab.bpe') in complaint(capfd, damaged)


@pytest.mark.parametrize('named', ['/nowhere/124M/model.ckpt', './model.ckpt'])
def test_a_moved_model_loads_the_checkpoint_beside_its_checkpoint_file(damaged, models, capsys, enc, named):
    (damaged / 'checkpoint').write_text(
        f'model_checkpoint_path: "{named}"\nall_model_checkpoint_paths: "{named}"\n'
    )
    texts = drawn(
        capsys,
        sample_model,
        model_name='bad',
        models_dir=str(damaged.parent),
        nsamples=1,
        length=8,
        temperature=0,
    )
    assert texts == [enc.decode(greedy(models / 'toy', [256], 8))]


def test_a_checkpoint_that_is_nowhere_is_named(damaged, capfd):
    (damaged / 'checkpoint').write_text('model_checkpoint_path: "/nowhere/124M/other.ckpt"\n')
    said = complaint(capfd, damaged)
    assert str(damaged / 'checkpoint') in said and 'other.ckpt' in said


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
    assert f'{damaged}/model.ckpt: model/' in said and ' is missing' in said


def test_a_vocabulary_without_the_end_of_text_is_refused_for_unconditional_samples_only(damaged, capfd):
    vocabulary = json.loads((damaged / 'encoder.json').read_text(encoding='utf-8'))
    del vocabulary[END]
    (damaged / 'encoder.json').write_text(json.dumps(vocabulary))
    assert f'{damaged}/encoder.json lacks {END}' in complaint(capfd, damaged)
    interact_model(
        model_name='bad', models_dir=str(damaged.parent), prompt='x', length=4, truncate=END, seed=1
    )
    assert len(split_samples(capfd.readouterr().out)) == 1
