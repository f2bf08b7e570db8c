"""The script: each command from its data to its table; test_metrics.py has the arithmetic."""
import contextlib
import inspect
import io
import json
import math
import os

from command_line import cli

import numpy as np
import pytest
import reference
from test_metrics import TEXT, assert_metrics, passage, perplexities
from test_test_sets import OF_WIKIHOW, QUESTION, cbt_text
from tiny_vocab import shared

import encode
import evaluate
import model
from create_model import create_model
from evaluation import likelihood, metrics, test_sets
from storage import checkpoint


@pytest.fixture
def command(scored, monkeypatch):
    """A function that runs a command and returns its stdout. A model is loaded once for the same flags."""
    monkeypatch.setattr(likelihood, 'Likelihood', scored.load)

    def run(*argv, name='random', models_dir=scored.folder):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            argv = [*argv, '--model_name', name, '--models_dir', models_dir]
            cli.run(evaluate.COMMANDS, list(map(str, argv)))
        return out.getvalue()
    return run


@pytest.fixture
def measured(command):  # -> a function: arguments of a command -> {name: (value, count)}
    def run(*argv, **models):
        rows = json.loads(command(*argv, '--json', **models))['figures']
        return {row['name']: (row['value'], row['count']) for row in rows}
    return run


def losses_of(scored, texts, stride=16, name='random'):
    """Of each text after an <|endoftext|>."""
    enc, losses = scored.enc[name], []
    for text in texts:
        losses += reference.nats(scored.numpy[name], [enc.eot, *enc.encode(text)], scored.sizes[name].n_ctx,
                                 stride)
    return losses


# Any text

def test_files_and_encoded_files_give_the_same_metrics(scored, measured, tmp_path, capsys):
    texts = [TEXT[:90], '\nthe keeper', TEXT[200:330] + '\n']
    (tmp_path / 'one').mkdir()
    (tmp_path / 'one' / 'a.txt').write_text('<|endoftext|>'.join(texts) + '<|endoftext|>\n')
    encode.encode(str(tmp_path / 'one' / 'a.txt'), str(tmp_path / 'a.npz'), model_name='random',
                  models_dir=scored.folder)
    for number, text in enumerate(texts):
        (tmp_path / f'{number}.txt').write_text(text)
    expected = perplexities(losses_of(scored, texts, 10), sum(len(text.split()) for text in texts),
                            sum(map(len, texts)))
    for data in (tmp_path / 'one', tmp_path / 'a.npz', f'{tmp_path}/*.txt'):
        assert_metrics(measured('perplexity', '--data', data, '--stride', '10'), expected)
    assert 'the text has 3 special tokens' in capsys.readouterr().err
    whole = (tmp_path / 'one' / 'a.txt').read_text()
    as_text = measured('perplexity', '--data', tmp_path / 'one', '--special_tokens', 'false')
    assert as_text['bits per byte'][1] == len(whole)
    assert as_text['loss per token, nats'][1] == len(scored.enc['random'].encode(whole))


def test_flags_reach_the_model_and_the_metrics(scored, measured, tmp_path):
    (tmp_path / 'x.txt').write_text(TEXT)
    tokens, flags = scored.enc['random'].encode(TEXT), ['--context', '24', '--stride', '7', '--batch_size',
                                                        '2']
    losses = reference.nats(scored.numpy['random'], tokens, 24, 7)
    assert_metrics(measured('perplexity', '--data', tmp_path / 'x.txt', '--boundary', 'none', *flags),
                   perplexities(losses, len(TEXT.split()), len(TEXT)))
    precise, low = (measured('perplexity', '--data', tmp_path / 'x.txt', '--precision', precision)
                    for precision in ('float32', 'bfloat16'))
    assert precise != low


def test_a_text_of_one_token_after_the_end_of_text(scored, measured, tmp_path):
    (tmp_path / 'x.txt').write_text('x')
    (loss,) = losses_of(scored, ['x'])
    assert measured('perplexity', '--data', tmp_path / 'x.txt')['loss per token, nats'] == (
        pytest.approx(loss, rel=1e-5), 1)


# Published test sets

@pytest.mark.parametrize('name, original, documents, lines', [
    ('wikitext2', ' = The lighthouse = \n \n The keeper , he said , was 1 @,@ 000 and " right " . \n',
     ['= The lighthouse =\n\nThe keeper, he said, was 1,000 and "right".\n'], 3),
    ('wikitext103', ' = The lighthouse = \n', ['= The lighthouse =\n'], 1),
    ('ptb', " mr. <unk> was n't right \n the lamp \n", ["mr. <unk> wasn't right\nthe lamp\n"], 2),
    ('1bw', 'He was right .\nThe lamp , he said .\n', ['He was right.\n', 'The lamp, he said.\n'], 2),
    ('enwik8', '<page> the & lamp\n', ['<page> the & lamp\n'], None),
    ('text8', ' the lamp', [' the lamp'], None),
])
def test_a_test_set_is_divided_by_its_own_words(scored, measured, tmp_path, name, original, documents, lines):
    (tmp_path / 'set').write_text(original)
    assert_metrics(measured(name, '--data', tmp_path / 'set'), perplexities(
        losses_of(scored, documents), len(original.split()), len(original), lines))


def test_the_metrics_on_real_vocabulary_and_text(measured, tmp_path):
    """Part of the file, with GPT-2's own vocabulary, beside the reference."""
    with open(shared('corpus', 'wikitext2_valid.txt'), encoding='utf-8', newline='') as file:
        original = file.read()[:500]
    (tmp_path / 'part').write_bytes(original.encode())
    (tmp_path / 'real').mkdir()
    for name in ('encoder.json', 'vocab.bpe'):
        os.symlink(shared('vocab', name), tmp_path / 'real' / name)
    create_model('toy', n_layer=1, n_head=2, n_embd=16, n_ctx=64, models_dir=str(tmp_path), seed=1,
                 vocab_from='real')
    directory, hp, enc = checkpoint.load_sizes_and_vocabulary('toy', str(tmp_path))
    with checkpoint.readable(checkpoint.resolve_path(directory)) as reader:
        values = {f'model/{name}': reader.get_tensor(f'model/{name}') for name in model.weight_shapes(hp)}
    tokens = [enc.eot, *enc.encode(test_sets.detokenize(original, test_sets.WIKITEXT_STEPS))]
    losses = reference.nats(reference.numpy_model(hp, values), tokens, 64, 64)
    part = ['--data', tmp_path / 'part', '--stride', 64]
    table = measured('wikitext2', *part, name='toy', models_dir=tmp_path)
    assert_metrics(table, perplexities(losses, len(original.split()), len(original.encode()),
                                       original.count('\n')))


def results(measured):  # list of Metric -> {name: (value, count)}
    return {metric.name: (metric.value, metric.count) for metric in measured}


@pytest.mark.parametrize('boundary', ['none', 'endoftext'])
def test_lambada_and_cbt_have_the_metrics_of_their_files(scored, measured, tmp_path, boundary):
    passages = ['He was reading the same page', 'the storm was right about the lighthouse']
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in passages))
    (tmp_path / 'a.txt').write_text("He didn 't , the lighthouse\n")
    (tmp_path / 'cbtest_CN').write_text(cbt_text(2))
    flags = ['--boundary', boundary]
    scorer = scored.load('random', scored.folder, None, precision='float32', batch_size=None, context=None)
    assert measured('lambada', '--data', tmp_path / 'a.jsonl', *flags) == results(
        metrics.lambada(scorer, map(passage, passages), boundary))
    assert measured('lambada', '--data', tmp_path / 'a.txt', '--detokenize', *flags) == results(
        metrics.lambada(scorer, [("He didn 't, the", ' lighthouse')], boundary))
    assert measured('cbt', '--data', tmp_path / 'cbtest_CN', *flags) == results(
        metrics.multiple_choice(scorer, test_sets.cbt_questions(str(tmp_path / 'cbtest_CN')), boundary))
    (tmp_path / 'h.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in (QUESTION, OF_WIKIHOW)))
    expected = results(metrics.multiple_choice(
        scorer, test_sets.hellaswag_questions(str(tmp_path / 'h.jsonl')), boundary, by_length=True))
    assert measured('hellaswag', '--data', tmp_path / 'h.jsonl', *flags) == expected
    assert [*expected] == ['accuracy, %', 'accuracy by length, %']


def test_logprobs_are_json_lines_with_a_prompt(scored, command, tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"text": " was right"}\n\n{"text": " café", "prompt": "x"}\n')
    lines = [json.loads(line) for line in command('logprobs', '--data', tmp_path / 'a.jsonl', '--prompt',
                                                  'The keeper',
                                                  '--stride', 9).splitlines()]
    assert [(line['prompt'], line['text']) for line in lines] == [('The keeper', ' was right'),
                                                                  ('x', ' café')]
    for line in lines:
        before = [scored.enc['random'].eot, *scored.enc['random'].encode(line['prompt'])]
        losses = reference.nats(scored.numpy['random'], [*before, *line['ids']], 32, 9, first=len(before))
        assert line['logprobs'] == pytest.approx([-loss for loss in losses], rel=1e-5)


# The script

def test_a_command_help_lists_its_own_flags(capsys):
    listing = {}
    for name, function in evaluate.COMMANDS.items():
        listing[name] = set(inspect.signature(function).parameters)
    assert listing['wikitext2'] - listing['cbt'] == {'stride'}
    of_files = {'encoding', 'special_tokens', 'text_field', 'template'}
    assert listing['perplexity'] - listing['wikitext2'] == of_files
    assert listing['logprobs'] - listing['wikitext2'] == {'prompt'}
    assert listing['lambada'] - listing['cbt'] == {'detokenize'}


@pytest.mark.parametrize('argv, message', [
    (['perplexity', '--data', 'absent'], 'nothing matches the path absent'),
    (['perplexity', '--data', '{}/empty.txt'], 'the data holds nothing to score'),
    (['perplexity', '--data', '{}/x.txt', '--boundary', 'none'], 'the data holds nothing to score'),
    (['perplexity', '--data', '{}/x.txt', '--stride', '33'], '--stride must be from 1 to the context, 32'),
    (['perplexity', '--data', '{}/x.txt', '--context', '33'],
     '--context must be from 1 to n_ctx, 32, not 33'),
    (['perplexity', '--data', '{}/x.txt', '--context', '0'], '--context must be from 1 to n_ctx, 32, not 0'),
    (['perplexity', '--data', '{}/x.txt', '--batch_size', '0'], '--batch_size must be 1 or more, not 0'),
    (['perplexity', '--data', '{}/x.txt', '--precision', 'float16'],
     '--precision must be one of float32, tf32'),
    (['perplexity', '--data', '{}/x.txt', '--boundary', 'eot'],
     '--boundary must be one of endoftext, none, joined'),
    (['perplexity', '--data', '{}/x.txt', '--checkpoint', 'model-9'], 'no checkpoint '),
    (['perplexity', '--data', '{}/large.npz'],
     'token id 5000: expected 0 to 556'),
    (['perplexity'], '--data must be given'),
    (['lambada', '--data', '{}/empty.txt'], 'the data holds no passage'),
    (['lambada', '--data', '{}/long.txt'], "the ending 'xqxq"),
    (['lambada', '--data', '{}/x.txt', '--boundary', 'joined'], '--boundary must be one of endoftext, none'),
    (['lambada', '--data', '{}/x.txt', '--stride', '3'], 'unknown flag --stride'),
    (['cbt', '--data', '{}/empty.txt'], 'the data holds no question'),
    (['logprobs', '--data', '{}/x.txt', '--boundary', 'joined'], '--boundary must be one of endoftext, none'),
    (['logprobs', '--data', '{}/prompt.jsonl'], '{}/prompt.jsonl line 1 is not an object'),
    (['wikitext', '--data', 'x'], "unknown command 'wikitext'; commands are "),
])
def test_mistakes_are_told_in_one_line(command, tmp_path, capsys, argv, message):
    for file, text in (('empty.txt', ''), ('x.txt', 'x'), ('long.txt', 'a ' + 'xq' * 40),
                       ('prompt.jsonl', '{"text": "x", "prompt": 1}')):
        (tmp_path / file).write_text(text)
    np.savez(tmp_path / 'large.npz', np.array([5, 5000, 6]))
    with pytest.raises(SystemExit) as stopped:
        command(*(word.replace('{}', str(tmp_path)) for word in argv))
    stderr = capsys.readouterr().err
    assert stopped.value.code == 2 and stderr.count('\n') == 1
    assert stderr.partition(': error: ')[2].startswith(message.replace('{}', str(tmp_path)))


def test_a_run_is_evaluated_by_its_name_and_checkpoint(scored, measured, tmp_path):
    (tmp_path / 'x.txt').write_text(TEXT[:100])
    perplexity = ['perplexity', '--data', tmp_path / 'x.txt']
    by_name, by_checkpoint, other = (
        measured(*perplexity, '--run_name', name, '--checkpoint_dir', scored.folder, *flags)
        for name, flags in (('trained', []), ('trained', ['--checkpoint', 'model.ckpt']), ('random', [])))
    assert by_name == by_checkpoint == measured(*perplexity, name='trained')
    assert by_name != other


def test_the_table(scored, command, measured, tmp_path):
    (tmp_path / 'x.txt').write_text(TEXT)
    lines = command('perplexity', '--data', tmp_path / 'x.txt').splitlines()
    rows = measured('perplexity', '--data', tmp_path / 'x.txt')
    assert f'checkpoint {scored.folder}/random/model.ckpt, precision float32, context 32' in lines[0]
    assert [line.split('  ')[0] for line in lines[1:]] == [*rows]
    for line, (value, count) in zip(lines[1:], rows.values(), strict=True):
        assert f'{value:.4f}' in line and f'{count:,}' in line and 'paper' not in line


# The paper's table

class Loaded:
    hparams, context, prefix = model.default_hparams(), 1024, 'models/124M/model.ckpt'


def test_infinity_is_null_in_json(capsys):
    row = [metrics.Metric('perplexity per word', math.inf, 1, 'words')]
    evaluate.report('perplexity', evaluate.SpanFlags(data='x', json=True), Loaded, row)
    assert json.loads(capsys.readouterr().out)['figures'][0]['value'] is None
    evaluate.report('perplexity', evaluate.SpanFlags(data='x'), Loaded, row)
    assert ' inf ' in capsys.readouterr().out


@pytest.mark.parametrize('name, column', [('124M', 0), ('117M', 0), ('345M', 1), ('355M', 1), ('774M', 2),
                                          ('1558M', 3)])
def test_a_released_model_is_known_by_its_name_and_sizes(name, column):
    n_layer, n_head, n_embd = ((12, 12, 768), (24, 16, 1024), (36, 20, 1280), (48, 25, 1600))[column]
    sizes = {'n_layer': n_layer, 'n_head': n_head, 'n_embd': n_embd}

    class Released(Loaded):
        hparams = model.default_hparams().override_from_dict(sizes)
        prefix = f'models/{name}/model.ckpt'

    assert evaluate.paper_values('ptb', 'x', Released) == {
        'perplexity per word and line end': {'paper_name': 'PTB (PPL)',
                                             'paper': (65.85, 47.33, 40.31, 35.76)[column]}}
    for prefix in (f'checkpoint/{name}/model-5', 'models/mine/model.ckpt'):
        Released.prefix = prefix
        assert evaluate.paper_values('ptb', 'x', Released) == {}
    Released.prefix, Released.hparams.n_ctx = f'models/{name}/model.ckpt', 512
    assert evaluate.paper_values('ptb', 'x', Released) == {}


@pytest.mark.parametrize('command, name, expected', [
    ('wikitext2', 'perplexity per word and line end', 'WikiText2 (PPL): 29.41'),
    ('wikitext103', 'perplexity per word and line end', 'WikiText103 (PPL): 37.5'),
    ('ptb', 'perplexity per word and line end', 'PTB (PPL): 65.85'),
    ('1bw', 'perplexity per word and line end', '1BW (PPL): 75.2'),
    ('enwik8', 'bits per byte', 'enwik8 (BPB): 1.16'), ('text8', 'bits per byte', 'text8 (BPC): 1.17'),
    ('lambada', 'last token: accuracy, %', 'LAMBADA (ACC): 45.99'),
    ('cbt', 'accuracy, %', 'CBT-NE (ACC): 83.4')])
def test_the_papers_values_stand_beside(capsys, command, name, expected):
    flags = evaluate.SpanFlags(data='CBTest/data/cbtest_NE_valid_2500ex.txt')
    evaluate.report(command, flags, Loaded, [metrics.Metric(name, 1.5, 10, 'things'),
                                             metrics.Metric('another', 2.5, 10, 'things')])
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(f'10 things   paper, {expected}')
    assert 'paper' not in second
