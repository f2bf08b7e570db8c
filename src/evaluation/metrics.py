"""Perplexities, accuracies and log-probabilities; docs/evaluation.md defines them.

model: a likelihood.Likelihood. stride, boundary: flags of evaluate.py. InputError if nothing can be scored.
"""
import collections
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator

import numpy as np

from errors import require

STOP_WORDS = pathlib.Path(__file__).with_name('stop_words.txt')  # of the closed classes of English


@dataclasses.dataclass(frozen=True)
class Metric:
    """A value, from a count of units."""
    name: str
    value: float
    count: int
    unit: str


def spans(tokens, context: int, stride: int, first: int = 1) -> Iterator[tuple]:
    """Yields pairs of tokens and how many of the last are scored: tokens[first:], each once, by `stride`
    after the first span. All spans but those at the start have context + 1 tokens."""
    end, last = first - 1, len(tokens) - 1
    while end < last:
        scored = min(last - end, max(stride, context - end))
        end += scored
        yield tokens[max(0, end - context):end + 1], scored


def check_stride(context: int, stride: int | None) -> int:
    """The stride, by default half the context. Raises InputError."""
    stride = max(1, context // 2) if stride is None else stride
    require(1 <= stride <= context, f'--stride must be from 1 to the context, {context}, not {stride}')
    return stride


def prefix(enc, boundary):  # -> ids before a text
    require(boundary == 'none' or enc.eot is not None,
            f'--boundary {boundary} needs a token that ends a text; the vocabulary has none: give none')
    return [] if boundary == 'none' else [enc.eot]


def exp(x):  # or infinity
    return math.exp(x) if x < 700 else math.inf


def perplexity(model, documents, stride=None, boundary='endoftext', lines=False) -> list[Metric]:
    """Of pairs: a published text, and the model's text or ids. lines: also count line ends as words."""
    stride, start = check_stride(model.context, stride), np.array(prefix(model.enc, boundary), np.int32)
    texts, words, n_lines, n_bytes = [], 0, 0, 0
    for published, text in documents:
        words += len(published.split())
        n_lines += published.count('\n')
        n_bytes += len(published.encode())
        ids = np.array(model.enc.encode(text) if isinstance(text, str) else text, np.int32)
        if len(ids):
            texts.append(np.append(start, ids))
    if boundary == 'joined':
        texts = [np.concatenate([*texts, start])]
    rows = [span for ids in texts for span in spans(ids, model.context, stride)]
    require(rows, 'the data holds nothing to score; with --boundary none give two tokens or more')
    n_tokens = sum(scored for _, scored in rows)
    nats = -sum(float(values.sum()) for _, values in model.score(rows))
    counts = [('token', n_tokens, 'tokens'), ('word', words, 'words'),
              ('word and line end', words + n_lines if lines else 0, 'words and line ends')]
    return [Metric('loss per token, nats', nats / n_tokens, n_tokens, 'tokens'),
            *(Metric(f'perplexity per {name}', exp(nats / n), n, unit) for name, n, unit in counts if n),
            Metric('loss per byte, nats', nats / n_bytes, n_bytes, 'bytes'),
            Metric('bits per byte', nats / math.log(2) / n_bytes, n_bytes, 'bytes')]


def ending(model, start, context, text):  # -> a span
    ids = model.enc.encode(context[len(context.rstrip()):] + text)  # a word begins with its space
    context = context.rstrip()
    require(len(ids) <= model.context,
            f'the ending {text.strip()[:40]!r} has {len(ids)} tokens; --context is {model.context}')
    return np.array([*start, *model.enc.encode(context), *ids][-model.context - 1:], np.int32), len(ids)


def lambada(model, passages, boundary='none') -> list[Metric]:
    """Of pairs (context, last word): accuracy and perplexity of the word and its last token."""
    enc, start = model.enc, prefix(model.enc, boundary)
    rows = [ending(model, start, context, word) for context, word in passages]
    require(rows, 'the data holds no passage')
    words = {f' {word}' for word in STOP_WORDS.read_text('utf-8').split()}
    stops = [id for id in enc.decoder if enc.decode([id]).lower() in words]
    results = collections.defaultdict(list)  # name -> pairs: is the prediction right, loss in nats
    for tokens, values, best, logits in model.score(rows, predictions=True):
        word, losses, logits = tokens[-len(values):], -values, logits[0].astype(np.float64)
        right = best == word
        for suffix in ('', ', no stop word'):
            results[f'last word{suffix}'].append((right.all(), losses.sum()))
            results[f'last token{suffix}'].append((right[-1], losses[-1]))
            logits[stops] = -np.inf
            right[0] = logits.argmax() == word[0]
            losses[0] = np.logaddexp.reduce(logits) - logits[word[0]]
    metrics = []
    for name, pairs in results.items():
        right, losses = np.array(pairs).T
        metrics.append(Metric(f'{name}: accuracy, %', 100 * right.mean(), len(pairs), 'passages'))
        if len(finite := losses[np.isfinite(losses)]):
            metrics.append(Metric(f'{name}: perplexity', exp(finite.mean()), len(finite), 'passages'))
    return metrics


def multiple_choice(model, questions, boundary='none', by_length=False) -> list[Metric]:
    """The share of questions (context, endings, the answer's index) whose answer is the likeliest ending;
    by_length: also by log-probability a character."""
    start, questions, right = prefix(model.enc, boundary), list(questions), []
    require(questions, 'the data holds no question')
    rows = [ending(model, start, context, text) for context, endings, _ in questions for text in endings]
    scores = model.score(rows)
    for _, endings, answer in questions:
        totals = np.array([values.sum() for _, values in itertools.islice(scores, len(endings))])
        scores_of = {'accuracy, %': totals}
        if by_length:
            scores_of['accuracy by length, %'] = totals / [*map(len, endings)]
        right.append([np.argmax(values) == answer for values in scores_of.values()])
    return [Metric(name, 100 * share, len(questions), 'questions')
            for name, share in zip(scores_of, np.mean(right, 0), strict=True)]


def logprobs(model, texts, stride=None, boundary='endoftext') -> Iterator[dict]:
    """Yields a dict for each pair (prompt, text). A token with nothing before it has None."""
    enc, start, stride = model.enc, prefix(model.enc, boundary), check_stride(model.context, stride)
    rows, all_spans = [], []
    for prompt, text in texts:
        before, ids = [*start, *enc.encode(prompt)], enc.encode(text)
        tokens = np.array([*before, *ids], np.int32)
        all_spans += spans(tokens, model.context, stride, max(1, len(before)))
        rows.append((prompt, text, ids, [] if before else [None] * len(ids[:1])))
    scores = (value for _, values in model.score(all_spans) for value in values.tolist())
    for prompt, text, ids, unscored in rows:
        values = list(itertools.islice(scores, len(ids) - len(unscored)))
        yield {'prompt': prompt, 'text': text, 'tokens': [enc.decode([id]) for id in ids], 'ids': ids,
               'logprobs': unscored + values, 'total': math.fsum(values)}
