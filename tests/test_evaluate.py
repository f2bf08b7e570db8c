"""Figures against those worked out by tests/reference.py; likelihood.py, metrics.py and the script itself."""
import contextlib
import io
import json
import math
import os

import numpy as np
import numpy_gpt2
import pytest
import reference
import tensorflow.compat.v1 as tf
import toy
from test_corpora import CHOICES, cbt_text
from tiny_vocab import ENGLISH, shared

import encode
import encoder
import evaluate
import model
from command_line import cli
from command_line.flags import PRECISIONS
from create_model import create_model
from errors import InputError
from evaluation import likelihood, metrics, test_sets
from fast import blocks, kernels
from storage import checkpoint

SIZES = {'random': {'n_ctx': 32}, 'trained': {'n_ctx': 24, 'n_head': 2, 'n_layer': 3}}


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Model directories with the small vocabulary, and {name: (HParams, weights)}."""
    folder, known = tmp_path_factory.mktemp('models'), {}
    for name, sizes in SIZES.items():
        (folder / name).mkdir()
        hp = toy.hparams(**sizes)
        values = toy.weights(hp)
        if name == 'trained':
            toy.write_model(str(folder / name), hp, values)
            values = reference.trained_weights(hp, encoder.get_encoder(name, str(folder)).encode(ENGLISH * 3))
        known[name] = toy.write_model(str(folder / name), hp, values)
    return folder, known


@pytest.fixture(params=SIZES)
def name(request):
    return request.param


@pytest.fixture(params=reference.MODELS)
def expected_of(request, models, name):
    return reference.MODELS[request.param](*models[1][name])


@pytest.fixture(scope='module')
def loaded(models):
    """Likelihoods by name and flags, each made once."""
    made = {}

    def load(name, **flags):
        key = name, *sorted(flags.items())
        made[key] = made.get(key) or likelihood.Likelihood(name, str(models[0]), **flags)
        return made[key]
    return load


def command(models, name, *argv):
    """What the command prints to stdout; models: the fixture."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.run(evaluate.COMMANDS, [*map(str, argv), '--model_name', name, '--models_dir', str(models[0])])
    return out.getvalue()


def figures_of(models, name, *argv):  # -> {name: (value, count)}
    found = json.loads(command(models, name, *argv, '--json'))
    return {each['name']: (each['value'], each['count']) for each in found['figures']}


def assert_figures(found, expected):
    assert found.keys() == expected.keys()
    for name, (value, count) in expected.items():
        assert found[name] == (pytest.approx(value, rel=1e-5), count), name


def perplexities(losses, words, n_bytes, lines=None):
    total = sum(losses)
    found = {'loss per token, nats': (total / len(losses), len(losses)),
             'perplexity per token': (math.exp(total / len(losses)), len(losses)),
             'perplexity per word': (math.exp(total / words), words)}
    if lines is not None:
        found['perplexity per word and line end'] = (math.exp(total / (words + lines)), words + lines)
    return {**found, 'bits per byte': (total / math.log(2) / n_bytes, n_bytes)}


# Windows

@pytest.mark.parametrize('n', [0, 1, 2, 5, 6, 7, 8, 20, 21])
@pytest.mark.parametrize('context, stride', [(1, 1), (6, 1), (6, 4), (6, 5), (6, 6), (30, 7)])
@pytest.mark.parametrize('first', [1, 4, 9])
def test_each_token_is_scored_once_in_a_window_as_full_as_can_be(n, context, stride, first):
    tokens, scored = list(range(100, 100 + n)), []
    for window in metrics.windows(tokens, context, stride, first):
        start = window.tokens[0] - 100
        assert window.tokens == tokens[start:start + len(window.tokens)]
        assert 0 < window.scored < len(window.tokens) <= context + 1
        assert len(window.tokens) == context + 1 or start == 0
        scored += window.tokens[-window.scored:]
    assert scored == tokens[first:]


@pytest.mark.parametrize('stride', [0, -1, 33, 1000])
def test_a_stride_that_leaves_tokens_out_is_refused(loaded, stride):
    with pytest.raises(InputError, match='--stride must be from 1 to the context, 32, not'):
        metrics.perplexity(loaded('random'), [test_sets.counted('a text')], stride)


# Perplexity

TEXT = ENGLISH.strip()[:520]
SHORT = ['The keeper', 'x', 'the old lighthouse keeper was right', 'a', '']


@pytest.mark.parametrize('context, stride', [(24, 24), (24, 7), (17, 1), (2, 2), (24, 12)])
def test_a_text_longer_than_the_context(models, loaded, name, expected_of, context, stride):
    text = TEXT if stride > 2 else TEXT[:150]
    found = metrics.perplexity(loaded(name, context=context), [test_sets.counted(text)], stride)
    enc = loaded(name).enc
    losses = reference.nats(expected_of, [enc.eot, *enc.encode(text)], context, stride)
    assert len(losses) == len(enc.encode(text)) > 1.5 * context
    assert_figures({each.name: (each.value, each.count) for each in found},
                   perplexities(losses, len(text.split()), len(text)))


@pytest.mark.parametrize('boundary', metrics.BOUNDARIES)
def test_boundaries_of_documents_of_all_lengths(models, tmp_path, name, expected_of, boundary):
    texts = [*SHORT, TEXT[:200], TEXT[300:420]]
    for number, text in enumerate(texts):
        (tmp_path / f'{number}.txt').write_text(text)
    found = figures_of(models, name, 'perplexity', '--data', tmp_path, '--boundary', boundary, '--stride', 10)
    enc, n_ctx = encoder.get_encoder(name, str(models[0])), SIZES[name]['n_ctx']
    ids = [enc.encode(text) for text in texts if text]
    if boundary == 'joined':
        ids = [[enc.eot, *(token for each in ids for token in [*each, enc.eot])]]
    elif boundary == 'endoftext':
        ids = [[enc.eot, *each] for each in ids]
    losses = [loss for each in ids for loss in reference.nats(expected_of, each, n_ctx, 10)]
    joined = ' '.join(texts)
    assert_figures(found, perplexities(losses, len(joined.split()), sum(map(len, texts))))


def test_an_encoded_file_gives_the_figures_of_its_text(models, tmp_path):
    enc = encoder.get_encoder('random', str(models[0]))
    (tmp_path / 'a.txt').write_text(TEXT)
    (tmp_path / 'b.txt').write_text('the keeper')
    tokens = [*enc.encode(TEXT), enc.eot, *enc.encode('the keeper'), enc.eot]
    np.savez(tmp_path / 'all.npz', np.array(tokens, np.uint16))
    for boundary in metrics.BOUNDARIES:
        found = [figures_of(models, 'random', 'perplexity', '--data', data, '--boundary', boundary)
                 for data in (tmp_path / 'all.npz', f'{tmp_path}/*.txt')]
        assert_figures(*found)


def test_documents_in_one_file_give_the_figures_of_its_npz(models, tmp_path, expected_of, name, capsys):
    texts = [TEXT[:90], '\nthe keeper', TEXT[200:330] + '\n']
    (tmp_path / 'a.txt').write_text('<|endoftext|>'.join(texts) + '<|endoftext|>\n')
    encode.encode(str(tmp_path / 'a.txt'), str(tmp_path / 'a.npz'), name, str(models[0]))
    enc, n_ctx = encoder.get_encoder(name, str(models[0])), SIZES[name]['n_ctx']
    ids = [[enc.eot, *enc.encode(text)] for text in texts]
    losses = [loss for each in ids for loss in reference.nats(expected_of, each, n_ctx, 10)]
    expected = perplexities(losses, sum(len(text.split()) for text in texts), sum(map(len, texts)))
    for boundary in metrics.BOUNDARIES:
        found = [figures_of(models, name, 'perplexity', '--data', tmp_path / data, '--stride', 10,
                            '--boundary', boundary) for data in ('a.txt', 'a.npz')]
        assert_figures(*found)
        if boundary == 'endoftext':
            assert_figures(found[0], expected)
    assert '3 <|endoftext|> in the text are taken as ends of documents' in capsys.readouterr().err
    whole = (tmp_path / 'a.txt').read_text()
    found = figures_of(models, name, 'perplexity', '--data', tmp_path / 'a.txt', '--special_tokens', 'false')
    assert found['bits per byte'][1] == len(whole)
    assert found['loss per token, nats'][1] == len(enc.encode(whole))


@pytest.mark.parametrize('flags', [{'batch_size': 1}, {'batch_size': 3}, {'batch_size': 100}])
def test_the_batch_size_changes_nothing(loaded, flags):
    documents = [test_sets.counted(text) for text in (*SHORT, TEXT)] * 3
    found, expected = (metrics.perplexity(loaded('random', **each), documents, 9) for each in (flags, {}))
    assert [each.value for each in found] == pytest.approx([each.value for each in expected], rel=1e-6)


def test_scores_come_in_order_from_a_bounded_number_of_windows(loaded, monkeypatch):
    monkeypatch.setattr(likelihood, 'BATCHES_AHEAD', 2)
    read = []

    def windows():
        for number in range(60):
            read.append(number)
            length = 20 if number % 7 == 0 else 31  # the first of the rare shape would wait long for its like
            yield metrics.ScoredSpan(np.full(length, number), 5, number)
    places = []
    for window, scores in loaded('random', batch_size=4).score(windows()):
        places.append(window.place)
        assert scores.log_probabilities.shape == (5,)
        assert len(read) - window.place <= 2 * 2 * 4 + 8
    assert places == list(range(60))


def test_as_kernels_and_by_blocks_of_attention(models, monkeypatch):
    """As large models are computed."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)
    monkeypatch.setattr(blocks, 'ATTENTION_BLOCK', 8)
    expected_of = reference.numpy_model(*models[1]['random'])
    scorer = likelihood.Likelihood('random', str(models[0]))
    tokens = [scorer.enc.eot, *scorer.enc.encode(TEXT)]
    found = metrics.perplexity(scorer, [test_sets.counted(TEXT)], 16)
    assert found[0].value == pytest.approx(np.mean(reference.nats(expected_of, tokens, 32, 16)), rel=1e-5)
    operations = [op for op in scorer.session.graph.get_operations() if 'PartitionedCall' in op.type]
    assert len(operations) > 10
    before = len(scorer.session.graph.get_operations())
    metrics.perplexity(scorer, [test_sets.counted(TEXT * 2)], 16)
    assert len(scorer.session.graph.get_operations()) == before  # nothing is traced anew


def test_bfloat16_is_near(models, loaded, tmp_path):
    (tmp_path / 'a.txt').write_text(TEXT)
    low, full = (figures_of(models, 'trained', 'perplexity', '--data', tmp_path / 'a.txt', '--precision', precision)
                 for precision in ('bfloat16', 'float32'))
    assert low['loss per token, nats'][0] == pytest.approx(full['loss per token, nats'][0], rel=5e-3)
    assert low != full


def test_ids_without_a_text_keep_their_share_of_probability(tmp_path):
    hp, values = toy.write_padded_model(tmp_path / 'padded')
    scorer = likelihood.Likelihood('padded', str(tmp_path))
    tokens = scorer.enc.encode(ENGLISH)[:20]
    ((_, scores),) = scorer.score([metrics.ScoredSpan(tokens, 19)], best=True)
    p = numpy_gpt2.softmax(numpy_gpt2.logits(values, tokens[:-1], hp.n_head))
    np.testing.assert_allclose(scores.log_probabilities, np.log(p[range(19), tokens[1:]]), atol=1e-4)
    assert scores.best.tolist() == p.argmax(axis=1).tolist()
    assert not scorer.enc.decoder.keys() >= set(scores.best.tolist())


def test_a_token_that_the_model_has_not_is_refused(loaded):
    for tokens, wrong in (([5, 557], 557), ([-1, 5], -1)):
        with pytest.raises(InputError, match=rf'the data holds token {wrong}, but the model\'s n_vocab is 557'):
            next(loaded('random').score([metrics.ScoredSpan(tokens, 1)]))


def test_a_hopeless_model_has_infinite_perplexity(capsys):
    class Loaded:
        hparams, context, prefix = model.default_hparams(), 1024, 'x'
    assert metrics.exp(699) == math.exp(699) and metrics.exp(1e5) == math.inf
    found = [metrics.Metric('perplexity per word', math.inf, 1, 'words')]
    evaluate.report('perplexity', evaluate.TextFlags(data='x', json=True), Loaded, found)
    assert json.loads(capsys.readouterr().out)['figures'][0]['value'] is None
    evaluate.report('perplexity', evaluate.TextFlags(data='x'), Loaded, found)
    assert ' inf ' in capsys.readouterr().out


# Published test sets

def test_wikitext_is_divided_by_its_own_words(models, tmp_path, name, expected_of):
    original = ' = The lighthouse = \n \n The keeper , he said , was 1 @,@ 000 and " right " . \n'
    natural = '= The lighthouse =\n\nThe keeper, he said, was 1,000 and "right".\n'
    (tmp_path / 'wiki.test.tokens').write_text(original)
    enc = encoder.get_encoder(name, str(models[0]))
    losses = reference.nats(expected_of, [enc.eot, *enc.encode(natural)], SIZES[name]['n_ctx'], 5)
    for each in ('wikitext2', 'wikitext103'):
        found = figures_of(models, name, each, '--data', tmp_path, '--stride', 5)
        assert_figures(found, perplexities(losses, 19, len(original), lines=3))


@pytest.mark.parametrize('corpus, original, documents, lines', [
    ('ptb', " mr. <unk> was n't right \n the lamp \n", [" mr. <unk> wasn't right\n the lamp\n"], 2),
    ('1bw', 'He was right .\nThe lamp , he said .\n', ['He was right.\n', 'The lamp, he said.\n'], 2),
    ('enwik8', '<page> the & lamp\n', ['<page> the & lamp\n'], None),
    ('text8', ' the lamp', [' the lamp'], None),
])
def test_other_sets(models, tmp_path, corpus, original, documents, lines):
    (tmp_path / 'set').write_text(original)
    documents = [each.replace(' mr.', 'mr.').replace('\n the', '\nthe') for each in documents]
    enc = encoder.get_encoder('random', str(models[0]))
    expected_of = reference.numpy_model(*models[1]['random'])
    losses = [loss for each in documents for loss in reference.nats(expected_of, [enc.eot, *enc.encode(each)], 32, 16)]
    found = figures_of(models, 'random', corpus, '--data', tmp_path / 'set')
    assert_figures(found, perplexities(losses, len(original.split()), len(original), lines))


def test_the_table_on_real_vocabulary_and_text(tmp_path):
    """Part of the file, a byte a token and with GPT-2's own vocabulary, beside the reference."""
    with open(shared('corpus', 'wikitext2_valid.txt'), encoding='utf-8', newline='') as file:
        original = file.read()[:1500]
    (tmp_path / 'part').write_bytes(original.encode())
    (tmp_path / 'real').mkdir()
    for each in ('encoder.json', 'vocab.bpe'):
        os.symlink(shared('vocab', each), tmp_path / 'real' / each)
    for name, vocab_from in (('demo', None), ('toy', 'real')):
        create_model(name, n_layer=2, n_head=2, n_embd=32, n_ctx=128, models_dir=str(tmp_path), seed=1,
                     vocab_from=vocab_from)
        _, hp, enc = checkpoint.load_sizes_and_vocabulary(name, str(tmp_path))
        reader = tf.train.load_checkpoint(str(tmp_path / name))
        values = {each: reader.get_tensor(each) for each in reader.get_variable_to_shape_map()}
        natural = test_sets.wikitext_detokenizer().detokenize(original)
        losses = reference.nats(reference.numpy_model(hp, values), [enc.eot, *enc.encode(natural)], 128, 128)
        found = figures_of((tmp_path,), name, 'wikitext2', '--data', tmp_path / 'part', '--stride', 128)
        assert_figures(found, perplexities(losses, len(original.split()), len(original.encode()),
                                           original.count('\n')))


# LAMBADA

PASSAGES = ['The keeper trimmed the lamp, and the storm was right about the lighthouse', 'He was reading the same page',
            "It wasn't a good page, and he was reading the", ' '.join(TEXT.split()[:60]), 'x y',
            '"You\'ll see," she said to\nNovember']


@pytest.mark.parametrize('boundary', ['none', 'endoftext'])
def test_lambada(models, tmp_path, name, expected_of, boundary):
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in PASSAGES))
    found = figures_of(models, name, 'lambada', '--data', tmp_path / 'a.jsonl', '--boundary', boundary)
    enc, n_ctx = encoder.get_encoder(name, str(models[0])), SIZES[name]['n_ctx']
    stop = [id for id, symbol in enc.decoder.items()
            if symbol[0] == 'Ġ' and symbol[1:].lower() in metrics.STOP_WORDS.split()]
    assert len(stop) > 5
    results = {each: [] for each in ('last word', 'last token', 'last word, no stop word', 'last token, no stop word')}
    for text in PASSAGES:
        context = text[:-len(text.split()[-1])].rstrip()
        word = enc.encode(text[len(context):])
        tokens = [*([enc.eot] if boundary == 'endoftext' else []), *enc.encode(context), *word][-n_ctx - 1:]
        rows = expected_of(tokens[:-1])[-len(word):]
        for suffix in ('', ', no stop word'):
            if suffix:
                rows = rows.copy()
                rows[0, stop] = -np.inf
                rows[0] -= np.log(np.exp(rows[0]).sum())
            losses = [-row[token] for row, token in zip(rows, word, strict=True)]
            right = [row.argmax() == token for row, token in zip(rows, word, strict=True)]
            results[f'last word{suffix}'].append((all(right), sum(losses)))
            results[f'last token{suffix}'].append((right[-1], losses[-1]))
    expected = {}
    for each, pairs in results.items():
        possible = [loss for _, loss in pairs if np.isfinite(loss)]
        expected[f'{each}: accuracy, %'] = 100 * np.mean([right for right, _ in pairs]), len(pairs)
        expected[f'{each}: perplexity'] = math.exp(np.mean(possible)), len(possible)
    assert expected['last word, no stop word: perplexity'][1] == len(PASSAGES) - 2  # which end in a stop word
    assert_figures(found, expected)


def test_accuracy_counts_what_the_model_would_say(models, tmp_path):
    """Passages that end in the reference's own likeliest token are right, and with another one wrong."""
    enc = encoder.get_encoder('trained', str(models[0]))
    expected_of = reference.numpy_model(*models[1]['trained'])
    lines, all_words = [], ENGLISH.split()
    for text in (' '.join(all_words[i:i + 3]) for i in range(0, len(all_words) - 3, 2)):
        order = [enc.decode([id]) for id in expected_of(enc.encode(text))[-1].argsort()[::-1]]
        words = [each for each in order if each[0] == ' ' and each[1:].isalpha()]
        lines += [text + words[0], text + words[1]] if words[0] == order[0] else []
    assert len(lines) >= 4
    (tmp_path / 'a.txt').write_text('\n'.join(lines))
    found = figures_of(models, 'trained', 'lambada', '--data', tmp_path / 'a.txt')
    assert found['last word: accuracy, %'] == found['last token: accuracy, %'] == (50, len(lines))


def test_a_vocabulary_of_bytes_has_no_stop_words(tmp_path):
    create_model('bytes', n_layer=1, n_head=2, n_embd=16, n_ctx=32, models_dir=str(tmp_path), seed=1)
    (tmp_path / 'a.txt').write_text('he saw the lamp\n')
    found = figures_of((tmp_path,), 'bytes', 'lambada', '--data', tmp_path / 'a.txt')
    assert found['last word: perplexity'] == found['last word, no stop word: perplexity']


# The Children's Book Test

def test_cbt(models, tmp_path, expected_of, name):
    path = tmp_path / 'cbtest_NE_valid_2500ex.txt'
    # The same question twice, and answers that are sometimes the model's choice.
    path.write_text(cbt_text(1) + cbt_text(1) + cbt_text(2, seed=3))
    enc, n_ctx = encoder.get_encoder(name, str(models[0])), SIZES[name]['n_ctx']
    likeliest = []
    for question in test_sets.cbt_questions(str(path)):
        totals = []
        for candidate in CHOICES.split('|'):
            before = enc.encode(f'{question.context} {question.before}'.rstrip())
            ids = enc.encode(f' {candidate}{question.after}')
            tokens = [*before, *ids][-n_ctx - 1:]
            rows = expected_of(tokens[:-1])[-len(ids):]
            totals.append(sum(row[token] for row, token in zip(rows, ids, strict=True)))
        likeliest.append(CHOICES.split('|')[int(np.argmax(totals))])
    found = []
    for answers in (likeliest, [likeliest[0], *('fox' if each != 'fox' else 'king' for each in likeliest[1:])]):
        lines, upcoming = [], iter(answers)
        for line in path.read_text().split('\n'):
            fields = line.split('\t')
            lines.append('\t'.join([fields[0], next(upcoming), *fields[2:]]) if len(fields) > 1 else line)
        (tmp_path / 'answered.txt').write_text('\n'.join(lines))
        found.append(figures_of(models, name, 'cbt', '--data', tmp_path / 'answered.txt')['accuracy, %'])
    assert found == [(100, 4), (25, 4)]


# Log-probabilities

@pytest.mark.parametrize('boundary', ['endoftext', 'none'])
def test_logprobs(models, tmp_path, name, expected_of, boundary):
    lines = [*SHORT, TEXT.replace('\n', ' '), 'café ']
    (tmp_path / 'a.txt').write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
    found = [json.loads(line) for line in command(models, name, 'logprobs', '--data', tmp_path / 'a.txt', '--boundary',
                                                  boundary, '--stride', 7).splitlines()]
    enc = encoder.get_encoder(name, str(models[0]))
    assert [each['text'] for each in found] == lines
    for each in found:
        start, ids = [enc.eot] * (boundary == 'endoftext'), enc.encode(each['text'])
        losses = reference.nats(expected_of, [*start, *ids], SIZES[name]['n_ctx'], 7)
        assert each['ids'] == ids and each['tokens'] == [enc.decode([id]) for id in ids]
        given = each['logprobs'] if start or not ids else each['logprobs'][1:]
        assert start or not ids or each['logprobs'][0] is None
        assert given == pytest.approx([-loss for loss in losses], rel=1e-5)
        assert each['total'] == pytest.approx(-sum(losses), rel=1e-5)


@pytest.mark.parametrize('prompt', ['The keeper', TEXT[:150]])
def test_a_continuation_given_a_prompt(models, tmp_path, name, expected_of, prompt):
    (tmp_path / 'a.jsonl').write_text(json.dumps({'text': ' was right'}) + '\n'
                                      + json.dumps({'text': f' and {TEXT}', 'prompt': 'x'}) + '\n')
    first, second = (json.loads(line) for line in command(
        models, name, 'logprobs', '--data', tmp_path / 'a.jsonl', '--prompt', prompt, '--stride', 9).splitlines())
    enc = encoder.get_encoder(name, str(models[0]))
    assert (first['prompt'], second['prompt']) == (prompt, 'x')
    for each in (first, second):
        before = [enc.eot, *enc.encode(each['prompt'])]
        losses = reference.nats(expected_of, [*before, *each['ids']], SIZES[name]['n_ctx'], 9, first=len(before))
        assert each['logprobs'] == pytest.approx([-loss for loss in losses], rel=1e-5)


# The script

def refused(models, capsys, *argv, name='random'):
    with pytest.raises(SystemExit) as stopped:
        command(models, name, *argv)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count('\n') == 1
    return said.partition(': error: ')[2]


@pytest.mark.parametrize('precision', PRECISIONS)
def test_products_are_rounded_to_tf32_only_where_it_is_asked_for(models, precision):
    tf.config.experimental.enable_tensor_float_32_execution(precision != 'tf32')
    likelihood.Likelihood('random', str(models[0]), precision=precision)
    assert tf.config.experimental.tensor_float_32_execution_enabled() == (precision == 'tf32')


@pytest.mark.parametrize('argv, message', [
    (['perplexity', '--data', 'absent'], 'nothing matches the path absent'),
    (['perplexity', '--data', '{}/empty.txt'], 'the data holds nothing to score'),
    (['perplexity', '--data', '{}/x.txt', '--boundary', 'none'], 'the data holds nothing to score'),
    (['perplexity', '--data', '{}/x.txt', '--stride', '33'], '--stride must be from 1 to the context, 32'),
    (['perplexity', '--data', '{}/x.txt', '--context', '33'], '--context must be from 1 to n_ctx, 32, not 33'),
    (['perplexity', '--data', '{}/x.txt', '--context', '0'], '--context must be from 1 to n_ctx, 32, not 0'),
    (['perplexity', '--data', '{}/x.txt', '--batch_size', '0'], '--batch_size must be 1 or more, not 0'),
    (['perplexity', '--data', '{}/x.txt', '--precision', 'float16'], '--precision must be one of float32, tf32'),
    (['perplexity', '--data', '{}/x.txt', '--boundary', 'eot'], '--boundary must be one of endoftext, none, joined'),
    (['perplexity', '--data', '{}/x.txt', '--checkpoint', 'model-9'], 'no checkpoint '),
    (['perplexity', '--data', '{}/large.npz'], 'token id 5000 is not in the vocabulary, whose ids are 0 to 556'),
    (['perplexity'], '--data must be given'),
    (['lambada', '--data', '{}/empty.txt'], 'the data holds no passage'),
    (['lambada', '--data', '{}/long.txt'], 'the last word '),
    (['lambada', '--data', '{}/x.txt', '--boundary', 'joined'], '--boundary must be none or endoftext'),
    (['cbt', '--data', '{}/empty.txt'], 'the data holds no question'),
    (['logprobs', '--data', '{}/x.txt', '--boundary', 'joined'], '--boundary must be endoftext or none here'),
    (['wikitext', '--data', 'x'], "unknown command 'wikitext'; did you mean wikitext2?"),
])
def test_mistakes_are_told_in_one_line(models, tmp_path, capsys, argv, message):
    for file, text in (('empty.txt', ''), ('x.txt', 'x'), ('long.txt', 'a ' + 'xq' * 40)):
        (tmp_path / file).write_text(text)
    np.savez(tmp_path / 'large.npz', np.array([5, 5000, 6]))
    said = refused(models, capsys, *(each.replace('{}', str(tmp_path)) for each in argv))
    assert said.startswith(message)


def test_a_text_of_one_token_after_the_end_of_text(models, tmp_path):
    (tmp_path / 'x.txt').write_text('x')
    enc = encoder.get_encoder('random', str(models[0]))
    row = reference.numpy_model(*models[1]['random'])([enc.eot])[0]
    found = figures_of(models, 'random', 'perplexity', '--data', tmp_path / 'x.txt')
    assert found['loss per token, nats'] == (pytest.approx(-row[enc.encode('x')[0]], rel=1e-5), 1)


def test_a_run_is_evaluated_by_its_name_and_checkpoint(models, tmp_path):
    (tmp_path / 'x.txt').write_text(TEXT)
    found = [figures_of(models, 'random', 'perplexity', '--data', tmp_path / 'x.txt', '--run_name', name,
                        '--checkpoint_dir', models[0], *more) for name, more in (
        ('trained', []), ('trained', ['--checkpoint', 'model.ckpt']), ('random', []))]
    assert found[0] == found[1] == figures_of(models, 'trained', 'perplexity', '--data', tmp_path / 'x.txt')
    assert found[0] != found[2]


def test_the_table(models, tmp_path):
    (tmp_path / 'x.txt').write_text(TEXT)
    said = command(models, 'random', 'perplexity', '--data', tmp_path / 'x.txt').splitlines()
    found = figures_of(models, 'random', 'perplexity', '--data', tmp_path / 'x.txt')
    assert f'checkpoint {models[0]}/random/model.ckpt, precision float32, context 32' in said[0]
    assert [line.split('  ')[0] for line in said[1:]] == [*found]
    for line, (value, count) in zip(said[1:], found.values(), strict=True):
        assert f'{value:.4f}' in line and f'{count:,}' in line and 'paper' not in line


# The paper's table

@pytest.mark.parametrize('name, column', [('124M', 0), ('117M', 0), ('345M', 1), ('355M', 1), ('774M', 2),
                                          ('1558M', 3)])
def test_a_released_model_is_known_by_its_name_and_sizes(name, column):
    n_layer, n_head, n_embd = ((12, 12, 768), (24, 16, 1024), (36, 20, 1280), (48, 25, 1600))[column]
    flags = evaluate.Flags(data='x', model_name=name)

    class Loaded:
        hparams = model.default_hparams().override_from_dict({'n_layer': n_layer, 'n_head': n_head, 'n_embd': n_embd})
        context, prefix = 1024, f'models/{name}/model.ckpt'
    assert evaluate.paper_column(flags, Loaded) == column
    for others in ({'run_name': 'run1'}, {'checkpoint': 'model-5'}, {'model_name': 'mine'}):
        assert evaluate.paper_column(evaluate.Flags(**{'data': 'x', 'model_name': name, **others}), Loaded) is None
    Loaded.hparams.n_ctx = 512
    assert evaluate.paper_column(flags, Loaded) is None


@pytest.mark.parametrize('command, figure, expected', [
    ('wikitext2', 'perplexity per word and line end', 'WikiText2 (PPL): 29.41'),
    ('wikitext103', 'perplexity per word and line end', 'WikiText103 (PPL): 37.5'),
    ('ptb', 'perplexity per word and line end', 'PTB (PPL): 65.85'),
    ('1bw', 'perplexity per word and line end', '1BW (PPL): 75.2'),
    ('enwik8', 'bits per byte', 'enwik8 (BPB): 1.16'), ('text8', 'bits per byte', 'text8 (BPC): 1.17'),
    ('lambada', 'last token: accuracy, %', 'LAMBADA (ACC): 45.99'), ('cbt', 'accuracy, %', 'CBT-NE (ACC): 83.4')])
def test_the_papers_figures_stand_beside(capsys, command, figure, expected):
    class Loaded:
        hparams, context, prefix = model.default_hparams(), 1024, 'models/124M/model.ckpt'
    flags = evaluate.TextFlags(data='CBTest/data/cbtest_NE_valid_2500ex.txt', model_name='124M')
    evaluate.report(command, flags, Loaded, [metrics.Metric(figure, 1.5, 10, 'things'),
                                             metrics.Metric('another', 2.5, 10, 'things')])
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.endswith(f'10 things   paper, {expected}')
    assert 'paper' not in second
