"""Metrics against those of tests/reference.py, which computes each token by itself."""
import json
import math

import numpy as np
import pytest
import reference
from test_test_sets import CHOICES, cbt_text
from tiny_vocab import ENGLISH

from errors import InputError
from evaluation import metrics, test_sets

TEXT = ENGLISH.strip()[:520]
SHORT = ['The keeper', 'x', 'the old lighthouse keeper was right', 'a', '']


@pytest.fixture(params=['random', 'trained'])
def name(request):
    return request.param


def documents(*texts):
    return [(text, text) for text in texts]


def values(measured):  # list of Metric -> {name: (value, count)}
    return {metric.name: (metric.value, metric.count) for metric in measured}


def assert_metrics(measured, expected):
    assert measured.keys() == expected.keys()
    for name, (value, count) in expected.items():
        assert measured[name] == (pytest.approx(value, rel=1e-5), count), name


def perplexities(losses, words, n_bytes, lines=None):
    total = sum(losses)
    expected = {'loss per token, nats': (total / len(losses), len(losses)),
                'perplexity per token': (math.exp(total / len(losses)), len(losses)),
                'perplexity per word': (math.exp(total / words), words)}
    if lines is not None:
        expected['perplexity per word and line end'] = (math.exp(total / (words + lines)), words + lines)
    return {**expected, 'loss per byte, nats': (total / n_bytes, n_bytes),
            'bits per byte': (total / math.log(2) / n_bytes, n_bytes)}


# Spans

@pytest.mark.parametrize('context, stride', [(1, 1), (6, 1), (6, 4), (6, 5), (6, 6), (30, 7)])
@pytest.mark.parametrize('first', [1, 4, 9])
def test_each_token_is_scored_once_in_a_span_as_full_as_can_be(context, stride, first):
    for n in (0, 1, 2, 5, 6, 7, 8, 20, 21):
        tokens, scored = list(range(100, 100 + n)), []
        for span, n_scored in metrics.spans(tokens, context, stride, first):
            start = span[0] - 100
            assert span == tokens[start:start + len(span)]
            assert 0 < n_scored < len(span) <= context + 1
            assert len(span) == context + 1 or start == 0
            scored += span[-n_scored:]
        assert scored == tokens[first:]


@pytest.mark.parametrize('stride', [0, -1, 33, 1000])
def test_a_stride_that_leaves_tokens_out_is_refused(scored, stride):
    with pytest.raises(InputError, match='--stride must be from 1 to the context, 32, not'):
        metrics.perplexity(scored.likelihood('random'), documents('a text'), stride)


# Perplexity

@pytest.mark.parametrize('context, stride', [(24, 24), (24, 7), (17, 1), (2, 2), (24, 12)])
def test_a_text_longer_than_the_context(scored, name, context, stride):
    text, enc = TEXT if stride > 2 else TEXT[:150], scored.enc[name]
    measured = metrics.perplexity(scored.likelihood(name, context=context), documents(text), stride)
    losses = reference.nats(scored.numpy[name], [enc.eot, *enc.encode(text)], context, stride)
    assert len(losses) == len(enc.encode(text)) > 1.5 * context
    assert_metrics(values(measured), perplexities(losses, len(text.split()), len(text)))


def test_transformers_gives_the_same_losses(scored):
    log_probabilities = reference.transformers_model(scored.sizes['trained'], scored.weights['trained'])
    tokens = [scored.enc['trained'].eot, *scored.enc['trained'].encode(TEXT)]
    losses = reference.nats(log_probabilities, tokens, 24, 7)
    (loss, *_) = metrics.perplexity(scored.likelihood('trained', context=24), documents(TEXT), 7)
    assert loss.value == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize('boundary', ['endoftext', 'none', 'joined'])
def test_boundaries_of_documents_of_all_lengths(scored, name, boundary):
    texts, enc = [*SHORT, TEXT[:200], TEXT[300:420]], scored.enc[name]
    measured = metrics.perplexity(scored.likelihood(name), documents(*texts), 10, boundary)
    ids = [enc.encode(text) for text in texts if text]
    if boundary == 'joined':
        ids = [[enc.eot, *(token for text_ids in ids for token in [*text_ids, enc.eot])]]
    elif boundary == 'endoftext':
        ids = [[enc.eot, *text_ids] for text_ids in ids]
    losses = []
    for row in ids:
        losses += reference.nats(scored.numpy[name], row, scored.sizes[name].n_ctx, 10)
    assert_metrics(values(measured), perplexities(losses, len(' '.join(texts).split()), sum(map(len, texts))))


def test_a_vocabulary_without_an_end_of_text_needs_boundary_none():
    class Vocabulary:
        eot = None
    assert metrics.prefix(Vocabulary, 'none') == []
    with pytest.raises(InputError, match='--boundary endoftext needs a token that ends a text'):
        metrics.prefix(Vocabulary, 'endoftext')


def test_the_batch_size_changes_nothing(scored):
    texts = documents(*SHORT, TEXT, *SHORT, TEXT)
    expected = values(metrics.perplexity(scored.likelihood('random'), texts, 9))
    for batch_size in (1, 100):
        assert_metrics(values(metrics.perplexity(scored.likelihood('random', batch_size=batch_size), texts,
                                                 9)),
                       expected)


def test_bfloat16_is_near(scored):
    low, full = (metrics.perplexity(scored.likelihood('trained', precision=precision), documents(TEXT))
                 for precision in ('bfloat16', 'float32'))
    assert low[0].value == pytest.approx(full[0].value, rel=5e-3)
    assert low[0] != full[0]


def test_a_hopeless_model_has_infinite_perplexity():
    assert metrics.exp(699) == math.exp(699) and metrics.exp(1e5) == math.inf


# LAMBADA

PASSAGES = ['The keeper trimmed the lamp, and the storm was right about the lighthouse',
            'He was reading the same page',
            "It wasn't a good page, and he was reading the", ' '.join(TEXT.split()[:60]), 'x y',
            '"You\'ll see," she said to\nNovember']


def passage(text):
    context = text[:-len(text.split()[-1])].rstrip()
    return context, text[len(context):]


@pytest.mark.parametrize('boundary', ['none', 'endoftext'])
def test_lambada(scored, name, boundary):
    enc, n_ctx = scored.enc[name], scored.sizes[name].n_ctx
    measured = metrics.lambada(scored.likelihood(name), map(passage, PASSAGES), boundary)
    words = metrics.STOP_WORDS.read_text('utf-8').split()
    stop = [id for id, symbol in enc.decoder.items() if symbol[0] == 'Ġ' and symbol[1:].lower() in words]
    assert len(stop) > 5
    results = {}
    for context, last_word in map(passage, PASSAGES):
        word = enc.encode(last_word)
        tokens = [*([enc.eot] if boundary == 'endoftext' else []), *enc.encode(context), *word][-n_ctx - 1:]
        rows = scored.numpy[name](tokens[:-1])[-len(word):]
        for suffix in ('', ', no stop word'):
            if suffix:
                rows[0, stop] = -np.inf
                rows[0] -= np.log(np.exp(rows[0]).sum())
            losses = [-row[token] for row, token in zip(rows, word, strict=True)]
            right = [row.argmax() == token for row, token in zip(rows, word, strict=True)]
            results.setdefault(f'last word{suffix}', []).append((all(right), sum(losses)))
            results.setdefault(f'last token{suffix}', []).append((right[-1], losses[-1]))
    expected = {}
    for result, pairs in results.items():
        possible = [loss for _, loss in pairs if np.isfinite(loss)]
        expected[f'{result}: accuracy, %'] = 100 * np.mean([right for right, _ in pairs]), len(pairs)
        expected[f'{result}: perplexity'] = math.exp(np.mean(possible)), len(possible)
    assert expected['last word, no stop word: perplexity'][1] == len(PASSAGES) - 2  # which end in a stop word
    assert_metrics(values(measured), expected)


def test_accuracy_counts_the_predictions_of_the_model(scored):
    """Passages that end in the reference's own likeliest token are right, and with another one wrong."""
    enc, passages, words = scored.enc['trained'], [], ENGLISH.split()
    for text in (' '.join(words[i:i + 3]) for i in range(0, len(words) - 3, 2)):
        order = [enc.decode([id]) for id in scored.numpy['trained'](enc.encode(text))[-1].argsort()[::-1]]
        likely = [word for word in order if word[0] == ' ' and word[1:].isalpha()]
        passages += [(text, likely[0]), (text, likely[1])] if likely[0] == order[0] else []
    assert len(passages) >= 4
    measured = values(metrics.lambada(scored.likelihood('trained'), passages))
    assert measured['last word: accuracy, %'] == measured['last token: accuracy, %'] == (50, len(passages))


def test_a_vocabulary_without_stop_words_has_no_filter(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, 'STOP_WORDS', tmp_path / 'none')  # as in a vocabulary of bytes
    metrics.STOP_WORDS.write_text('')
    measured = values(metrics.lambada(scored.likelihood('random'), [('he saw the', ' lamp')]))
    assert measured['last word: perplexity'] == pytest.approx(measured['last word, no stop word: perplexity'])


# The Children's Book Test

def test_cbt(scored, name, tmp_path):
    (tmp_path / 'questions.txt').write_text(cbt_text(1) + cbt_text(1) + cbt_text(2, seed=3))  # the same twice
    questions = list(test_sets.cbt_questions(str(tmp_path / 'questions.txt')))
    enc, n_ctx, likeliest = scored.enc[name], scored.sizes[name].n_ctx, []
    for context, endings, _ in questions:
        totals = []
        for candidate, text in zip(CHOICES.split('|'), endings, strict=True):
            assert text == f'{candidate}, "we go."' and context.endswith(' ')
            ids = enc.encode(f' {text}')
            tokens = [*enc.encode(context[:-1]), *ids][-n_ctx - 1:]
            rows = scored.numpy[name](tokens[:-1])[-len(ids):]
            totals.append(sum(row[token] for row, token in zip(rows, ids, strict=True)))
        likeliest.append(int(np.argmax(totals)))
    others = [(answer + 1) % 10 for answer in likeliest]
    for answers, accuracy in ((likeliest, 100), ([likeliest[0], *others[1:]], 25)):
        answered = [(context, endings, answer)
                    for (context, endings, _), answer in zip(questions, answers, strict=True)]
        measured = values(metrics.multiple_choice(scored.likelihood(name), answered))
        assert measured == {'accuracy, %': (accuracy, 4)}


# Log-probabilities

@pytest.mark.parametrize('boundary', ['endoftext', 'none'])
def test_logprobs(scored, name, boundary):
    enc, pairs = scored.enc[name], [('', text) for text in [*SHORT, TEXT, 'café ']]
    pairs += [('The keeper', ' was right'), ('x', f' and {TEXT}'), (TEXT[:150], ' was right'), ('x', '')]
    lines = metrics.logprobs(scored.likelihood(name), pairs, 7, boundary)
    for (before, text), line in zip(pairs, lines, strict=True):
        start, ids = [*([enc.eot] if boundary == 'endoftext' else []), *enc.encode(before)], enc.encode(text)
        assert (line['prompt'], line['text'], line['ids']) == (before, text, ids)
        assert line['tokens'] == [enc.decode([id]) for id in ids]
        losses = reference.nats(scored.numpy[name], [*start, *ids], scored.sizes[name].n_ctx, 7,
                                max(1, len(start)))
        unscored = [None] if ids and not start else []
        assert line['logprobs'][:len(unscored)] == unscored
        assert line['logprobs'][len(unscored):] == pytest.approx([-loss for loss in losses], rel=1e-5)
        assert line['total'] == pytest.approx(-sum(losses), rel=1e-5)


# HellaSwag

def hellaswag_questions(n):
    words, random = ENGLISH.split(), np.random.RandomState(4)
    return [{'activity_label': words[k],
             'ctx_a': ' '.join(words[k:k + 5]) + ' [title]', 'ctx_b': words[k + 5] + ' [step]' * (k % 2),
             'endings': ['[substeps] ' * (i % 2) + ' '.join(random.choice(words, random.randint(1, 6)))
                         for i in range(4)],
             'label': str(random.randint(4))} for k in random.randint(0, len(words) - 6, n)]


def test_hellaswag_is_that_of_lm_evaluation_harness(scored, tmp_path, monkeypatch):
    pytest.importorskip('lm_eval', reason='make test-all compares with lm-evaluation-harness')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'cache'))
    from lm_eval import evaluator
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.hellaswag.utils import process_docs

    from formats import hugging_face
    from storage import checkpoint
    data = tmp_path / 'hellaswag_val.jsonl'
    data.write_text(''.join(json.dumps(question) + '\n' for question in hellaswag_questions(40)))
    (tmp_path / 'hf').mkdir()
    hugging_face.write(str(tmp_path / 'hf'), *checkpoint.find('trained', scored.folder))
    peer = HFLM(pretrained=str(tmp_path / 'hf'), device='cpu', batch_size=4)
    task = ConfigurableTask(config={
        'task': 'hellaswag', 'dataset_path': 'json', 'validation_split': 'validation',
        'dataset_kwargs': {'data_files': {'validation': str(data)}}, 'process_docs': process_docs,
        'output_type': 'multiple_choice', 'doc_to_text': '{{query}}', 'doc_to_target': '{{label}}',
        'doc_to_choice': 'choices',
        'metric_list': [{'metric': 'acc'}, {'metric': 'acc_norm'}]})
    theirs = evaluator.evaluate(peer, {'hellaswag': task}, bootstrap_iters=0)['results']['hellaswag']
    questions = test_sets.hellaswag_questions(str(tmp_path))
    ours = values(metrics.multiple_choice(scored.likelihood('trained'), questions, by_length=True))
    assert ours == {'accuracy, %': (pytest.approx(100 * theirs['acc,none']), 40),
                    'accuracy by length, %': (pytest.approx(100 * theirs['acc_norm,none']), 40)}
    assert 0 < theirs['acc,none'] != theirs['acc_norm,none'] > 0
