"""Metrics of an evaluation: from a model and texts to perplexities, accuracies and log-probabilities.

A text is cut into spans of up to context + 1 tokens. The model sees all tokens of a span but the last; the
span scores the tokens that no span before it has scored. So each token is scored once, and after the first
span with at least context - stride + 1 tokens before it.

`model` is a likelihood.Likelihood. `progress` is called with how many things are done, and how many there
are.
"""
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from errors import require

BOUNDARIES = ('endoftext', 'none', 'joined')
BANNED = -1e20  # the log-probability of a token that Likelihood rules out is lower
STOP_WORDS = """
    a an the this that these those some any each every no all both either neither such another above might
    and or but nor so yet if as than because while although though unless until whether since when where below
    of in on at by to from with without for about into onto over under between through during before after
    against among around behind beside beyond near off out up down toward towards upon within across along
    i you he she it we they me us them my your his her its our their mine yours hers ours theirs
    myself yourself himself herself itself ourselves themselves who whom whose which what
    is am are was were be been being do does did doing have has had having will would shall should can could
    may must not n't 's 're 've 'll 'd 'm there here then just only very too also even still again
"""  # of the closed classes of English, in which a passage rarely ends


@dataclasses.dataclass(frozen=True)
class Metric:
    """A measured value, computed from `count` things that `unit` names."""
    name: str
    value: float
    count: int
    unit: str


@dataclasses.dataclass(frozen=True)
class ScoredSpan:
    """Two or more token ids. The last `scored` of them are scored, each given those before it."""
    tokens: Sequence[int] | np.ndarray
    scored: int


def spans(tokens, context: int, stride: int, first: int = 1) -> Iterator[ScoredSpan]:
    """Yields spans that score tokens[first:], each token once. All spans but those at the start are full.

    context: the most tokens that the model sees. stride: how many tokens each span after the first scores.
    """
    end, last = first - 1, len(tokens) - 1
    while end < last:
        scored = min(last - end, max(stride, context - end))
        end += scored
        yield ScoredSpan(tokens[max(0, end - context):end + 1], scored)


def check_stride(context: int, stride: int | None) -> int:
    """The stride, by default half of the context. Raises InputError unless it is from 1 to the context."""
    stride = max(1, context // 2) if stride is None else stride
    require(1 <= stride <= context, f'--stride must be from 1 to the context, {context}, not {stride}')
    return stride


def prefix(enc, boundary: str) -> list[int]:
    """The ids that stand before a document. Raises InputError where the vocabulary lacks the token."""
    require(boundary in BOUNDARIES, f'--boundary must be one of {", ".join(BOUNDARIES)}, not {boundary!r}')
    require(boundary == 'none' or enc.eot is not None, f'--boundary {boundary} needs a token that ends a '
            'text, which the vocabulary lacks; use --boundary none')
    return [] if boundary == 'none' else [enc.eot]


def exp(x: float) -> float:
    """e to the power of x; infinity where a float cannot hold it, since a model may be arbitrarily bad."""
    return math.exp(x) if x < 700 else math.inf


def no_progress(done, total):
    """For callers that show no progress."""


def perplexity(model, documents, stride=None, boundary='endoftext', progress=no_progress, lines=False):
    """A list of Metrics of documents (test_sets.Document): perplexities, bits per byte.

    boundary: endoftext: each document stands alone, after an <|endoftext|>. none: each stands alone; its
    first token is not scored. joined: an <|endoftext|> stands first, and after each document, where it is
    scored. lines: also count each line end as a word, as published counts do. Raises InputError without a
    scored token.
    """
    stride, start = check_stride(model.context, stride), np.array(prefix(model.enc, boundary), np.int32)
    documents = [document for document in documents if document.bytes]
    texts = [document.ids(model.enc) for document in documents]
    if boundary == 'joined' and texts:
        texts = [np.concatenate([np.append(ids, start) for ids in texts])]
    texts = [np.append(start, ids) for ids in texts]
    tokens, nats = sum(len(ids) - 1 for ids in texts), 0.0
    require(tokens, 'the data holds nothing to score: no text, or with --boundary none none of two tokens')
    for _, scores in model.score(span for ids in texts for span in spans(ids, model.context, stride)):
        nats -= float(scores.log_probabilities.sum())
        progress(len(scores.log_probabilities), tokens)
    counts = [('token', tokens, 'tokens'), ('word', sum(document.words for document in documents), 'words')]
    if lines:
        word_ends = counts[1][1] + sum(document.lines for document in documents)
        counts.append(('word and line end', word_ends, 'words and line ends'))
    n_bytes = sum(document.bytes for document in documents)
    return [Metric('loss per token, nats', nats / tokens, tokens, 'tokens'),
            *(Metric(f'perplexity per {name}', exp(nats / n), n, unit) for name, n, unit in counts if n),
            Metric('bits per byte', nats / math.log(2) / n_bytes, n_bytes, 'bytes')]


def ending(model, before, text, name):  # list of ids, str, str -> ScoredSpan
    """Scores a text after as many of the ids before it as fit. Raises InputError for too long a text."""
    ids = model.enc.encode(text)
    require(len(ids) <= model.context, f'{name} has {len(ids)} tokens, more than --context, {model.context}')
    return ScoredSpan([*before, *ids][-model.context - 1:], len(ids))


def lambada(model, passages, boundary='none', progress=no_progress):
    """A list of Metrics of passages (context, last word): accuracy, perplexity of words and last tokens.

    A word is right if each of its tokens is the likeliest; its probability is the product of theirs. Both are
    measured again with a filter, by which the word's first token is no stop word. There a passage that ends
    in a stop word is wrong, and has no part in the perplexity. Raises InputError where there is no passage.
    """
    enc, start, passages = model.enc, prefix(model.enc, boundary), list(passages)
    require(passages, 'the data holds no passage')
    words = {f' {word}' for word in STOP_WORDS.split()}
    stop_tokens = [id for id in sorted(enc.decoder) if enc.decode([id]).lower() in words]
    last_words = (ending(model, [*start, *enc.encode(context)], word, f'the last word {word.strip()[:40]!r}')
                  for context, word in passages)
    results = {}  # name -> list of (whether the prediction is right, loss in nats)
    for span, scores in model.score(last_words, best=True, banned=stop_tokens):
        for suffix, first in (('', scores), (', no stop word', scores.filtered or scores)):
            losses = -np.append(first.log_probabilities[:1], scores.log_probabilities[1:])
            losses[losses > -BANNED] = math.inf
            right = np.append(first.best[:1], scores.best[1:]) == span.tokens[-span.scored:]
            results.setdefault(f'last word{suffix}', []).append((right.all(), losses.sum()))
            results.setdefault(f'last token{suffix}', []).append((right[-1], losses[-1]))
        progress(1, len(passages))
    metrics = []
    for name, pairs in results.items():
        accuracy = 100 * sum(right for right, _ in pairs) / len(pairs)
        metrics.append(Metric(f'{name}: accuracy, %', accuracy, len(pairs), 'passages'))
        losses = [loss for _, loss in pairs if loss != math.inf]
        if losses:
            mean = sum(losses) / len(losses)
            metrics.append(Metric(f'{name}: perplexity', exp(mean), len(losses), 'passages'))
    return metrics


def cbt(model, questions, boundary='none', progress=no_progress):
    """A list of one Metric of questions (test_sets.Question): the share whose answer is the likeliest choice.

    A choice counts with the rest of its sentence, given the text before it, of which the model sees the last
    tokens that fit. Raises InputError where there is no question.
    """
    start, questions, right = prefix(model.enc, boundary), list(questions), 0
    require(questions, 'the data holds no question')
    scored = model.score(span for question in questions for span in choices(model, question, start))
    for question in questions:
        pairs = itertools.islice(scored, len(question.candidates))
        likeliest = np.argmax([scores.log_probabilities.sum() for _, scores in pairs])
        right += question.candidates[likeliest] == question.answer
        progress(1, len(questions))
    return [Metric('accuracy, %', 100 * right / len(questions), len(questions), 'questions')]


def choices(model, question, start):  # -> iterator of ScoredSpan
    text = f'{question.context} {question.before}'
    context = text.rstrip(' ')
    before = [*start, *model.enc.encode(context)]
    for candidate in question.candidates:
        sentence = text[len(context):] + candidate + question.after.replace('XXXXX', candidate)
        yield ending(model, before, sentence, 'a choice with the rest of its sentence')


def logprobs(model, texts, stride=None, boundary='endoftext', progress=no_progress):
    """Yields a dict for each pair of a prompt and a text: tokens, ids and log-probabilities of the text.

    Each token is given the prompt and the tokens before it. A first token with nothing before it (boundary
    none, no prompt) has None, and no part in the total.
    """
    enc, texts = model.enc, list(texts)
    start, stride = prefix(enc, boundary), check_stride(model.context, stride)
    rows = [([*start, *enc.encode(prompt)], enc.encode(text)) for prompt, text in texts]
    scored = model.score(span for before, ids in rows
                         for span in spans([*before, *ids], model.context, stride, max(1, len(before))))
    values = (float(value) for _, scores in scored for value in scores.log_probabilities)
    for (prompt, text), (before, ids) in zip(texts, rows, strict=True):
        unscored = [None] if ids and not before else []
        log_probabilities = list(itertools.islice(values, len(ids) - len(unscored)))
        progress(1, len(texts))
        yield {'prompt': prompt, 'text': text, 'tokens': [enc.decode([id]) for id in ids], 'ids': ids,
               'logprobs': unscored + log_probabilities, 'total': math.fsum(log_probabilities)}
