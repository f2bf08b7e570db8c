"""What is measured: texts and a model's log-probabilities → the figures of an evaluation.

    tokens ─windows→ Windows ─Likelihood.score→ log-probabilities ─→ Figures

A window is up to context + 1 tokens: the model sees all but the last and predicts all but the first, of which those
that no window before it had are scored. So each token is scored exactly once; and after at least context - stride + 1
others, where so many are before it. Needs no TensorFlow; `model` is a likelihood.Likelihood, and `progress` is called
with how many things more are done, and how many there are.
"""
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from errors import require

BOUNDARIES = ('endoftext', 'none', 'joined')
Progress = Callable[[int, int], None]

# Of the closed classes of English: words that rarely are what a passage ends in.
STOP_WORDS = """
    a an the this that these those some any each every no all both either neither such another
    and or but nor so yet if as than because while although though unless until whether since when where
    of in on at by to from with without for about into onto over under between through during before after above below
    against among around behind beside beyond near off out up down toward towards upon within across along
    i you he she it we they me us them my your his her its our their mine yours hers ours theirs
    myself yourself himself herself itself ourselves themselves who whom whose which what
    is am are was were be been being do does did doing have has had having will would shall should can could may might
    must not n't 's 're 've 'll 'd 'm there here then just only very too also even still again
"""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A value, and what is behind it: `count` of `unit`."""
    name: str
    value: float
    count: int
    unit: str


@dataclasses.dataclass(frozen=True)
class ScoredSpan:
    """tokens: a list or array of ids, two or more; the last `scored` of them are. place: what the caller wants back."""
    tokens: Sequence[int] | np.ndarray
    scored: int
    place: object = None


def windows(tokens: Sequence[int] | np.ndarray, context: int, stride: int, first: int = 1, place: object = None
            ) -> Iterator[ScoredSpan]:
    """Windows that together score tokens[first:], each token once; all but those at the start are of full length.

    context: the most tokens that the model sees; stride: how many a window scores after the first one.
    """
    end, last = first - 1, len(tokens) - 1
    while end < last:
        scored = min(last - end, max(stride, context - end))
        end += scored
        yield ScoredSpan(tokens[max(0, end - context):end + 1], scored, place)


def check_windows(context: int, stride: int | None) -> int:
    """The stride, by default half of the context. InputError unless it is from 1 to context: with a longer one, tokens
    between two windows would not be scored."""
    stride = max(1, context // 2) if stride is None else stride
    require(1 <= stride <= context, f'--stride must be from 1 to the context, {context}, not {stride}: with more, '
                                    'tokens between two windows would not be scored')
    return stride


def prefix(enc, boundary: str) -> list[int]:
    """The ids that are put before a document."""
    require(boundary in BOUNDARIES, f'--boundary must be one of {", ".join(BOUNDARIES)}, not {boundary!r}')
    require(boundary == 'none' or enc.eot is not None,
            f'--boundary {boundary} needs a token that ends a text, such as <|endoftext|>, which the '
            'vocabulary has not; use --boundary none')
    return [] if boundary == 'none' else [enc.eot]


# Perplexity

def sequences(enc, documents, boundary, counts):  # -> iterator of int32 arrays
    """The tokens to be scored, of each document or, joined, of all; adds to counts (words, lines, bytes)."""
    start, joined = prefix(enc, boundary), []
    for document in documents:
        ids = enc.encode(document.text) if document.tokens is None else document.tokens
        if len(ids):
            for name in counts:
                counts[name] += getattr(document, name)
            if boundary == 'joined':
                joined += [ids, start]
            else:
                yield token_array(start, ids)
    if joined:
        yield token_array(start, *joined)


def token_array(*parts):  # -> int32 [n]
    return np.concatenate([np.asarray(each, np.int32) for each in parts])


def perplexity(model, documents: Iterable, stride: int | None = None, boundary: str = 'endoftext',
               progress: Progress = lambda done, total: None, lines: bool = False) -> list[Metric]:
    """Figures of documents (corpora.Document).

    boundary: 'endoftext': each document by itself, after an <|endoftext|>; 'none': each by itself, its first token not
    scored but only seen; 'joined': all in one, each followed by an <|endoftext|>, which is scored, and the first after
    one. lines: also count a line's end as a word, as published counts do. Raises InputError where nothing is to score.
    """
    stride, counts, nats = check_windows(model.context, stride), dict.fromkeys(('words', 'lines', 'bytes'), 0), 0.0
    texts = list(sequences(model.enc, documents, boundary, counts))
    tokens = sum(len(each) - 1 for each in texts)
    require(tokens, 'the data holds nothing to score: no text, or with --boundary none none of two tokens')
    for _, scores in model.score(window for each in texts for window in windows(each, model.context, stride)):
        nats -= float(scores.log_probabilities.sum())
        progress(len(scores.log_probabilities), tokens)
    found = [Metric('loss per token, nats', nats / tokens, tokens, 'tokens'),
             Metric('perplexity per token', exp(nats / tokens), tokens, 'tokens')]
    if counts['words']:
        found.append(Metric('perplexity per word', exp(nats / counts['words']), counts['words'], 'words'))
    if lines:
        units = counts['words'] + counts['lines']
        found.append(Metric('perplexity per word and line end', exp(nats / units), units, 'words and line ends'))
    return [*found, Metric('bits per byte', nats / math.log(2) / counts['bytes'], counts['bytes'], 'bytes')]


def exp(x: float) -> float:
    """Of a number that may be too large for it: a model may be arbitrarily bad."""
    return math.exp(x) if x < 700 else math.inf


# The last words of passages

def stop_tokens(enc) -> list[int]:
    """The tokens that are a stop word with the space before it; a vocabulary of bytes has none."""
    words = {f' {word}' for word in STOP_WORDS.split()}
    return [id for id in sorted(enc.decoder) if enc.decode([id]).lower() in words]


def lambada(model, passages: Iterable[tuple[str, str]], boundary: str = 'none',
            progress: Progress = lambda done, total: None) -> list[Metric]:
    """Figures of passages (context, last word): of the word, which is right if each of its tokens is the likeliest, and
    whose probability is that of all of them; and of its last token alone. Each also with a filter: no stop word.

    The filter rules the tokens that are a stop word out as the word's first token, where alone a word begins. A
    passage that does end in one is wrong with the filter, and left out of its perplexity. Raises InputError where there
    is no passage.
    """
    passages, start, rows = list(passages), prefix(model.enc, boundary), []
    for window, scores in model.score(last_words(model, passages, start), best=True, banned=stop_tokens(model.enc)):
        rows.append([each for filtered in (False, True) for each in word_and_token(window, scores, filtered)])
        progress(1, len(passages))
    require(rows, 'the data holds no passage')
    found = []
    for column, name in enumerate(('last word', 'last token', 'last word, no stop word', 'last token, no stop word')):
        right, nats = zip(*(row[column] for row in rows), strict=True)
        possible = [each for each in nats if each is not None]
        found.append(Metric(f'{name}: accuracy, %', 100 * sum(right) / len(right), len(right), 'passages'))
        if possible:
            found.append(Metric(f'{name}: perplexity', exp(sum(possible) / len(possible)), len(possible), 'passages'))
    return found


def last_words(model, passages, start):
    for context, word in passages:
        ids = model.enc.encode(word)
        require(len(ids) <= model.context, f'the last word {word.strip()[:40]!r} has {len(ids)} tokens, more than '
                                           f'--context, {model.context}')
        tokens = [*start, *model.enc.encode(context), *ids]
        yield ScoredSpan(tokens[-model.context - 1:], len(ids))


def word_and_token(window, scores, filtered):  # -> (right, nats) of the word, and of its last token
    """nats is None where the filter rules the word itself out."""
    log_probabilities, best = scores.log_probabilities.copy(), scores.best.copy()
    if filtered and scores.filtered:
        log_probabilities[0], best[0] = scores.filtered.log_probabilities[0], scores.filtered.best[0]
    right = best == np.asarray(window.tokens[-window.scored:])
    ruled_out = log_probabilities[0] < -1e20
    return ((bool(right.all()), None if ruled_out else -log_probabilities.sum()),
            (bool(right[-1]), None if ruled_out and len(right) == 1 else -log_probabilities[-1]))


# The Children's Book Test

def cbt(model, questions: Iterable, boundary: str = 'none', progress: Progress = lambda done, total: None
        ) -> list[Metric]:
    """The share of questions (corpora.Question) where of all choices the answer is likeliest: by the log-probability of
    the choice and the rest of its sentence, given what is before, of which the last tokens that fit are seen.

    Raises InputError where there is no question.
    """
    questions, start, right = list(questions), prefix(model.enc, boundary), 0
    scored = model.score(window for number, question in enumerate(questions)
                         for window in choices(model, question, start, number))
    for number, group in itertools.groupby(scored, lambda each: each[0].place):
        totals = [scores.log_probabilities.sum() for _, scores in group]
        right += questions[number].candidates[int(np.argmax(totals))] == questions[number].answer
        progress(1, len(questions))
    require(questions, 'the data holds no question')
    return [Metric('accuracy, %', 100 * right / len(questions), len(questions), 'questions')]


def choices(model, question, start, place):  # -> iterator of Window
    before = f'{question.context} {question.before}'
    context = before.rstrip(' ')
    seen = [*start, *model.enc.encode(context)]
    for candidate in question.candidates:
        ids = model.enc.encode(before[len(context):] + candidate + question.after.replace('XXXXX', candidate))
        require(len(ids) <= model.context, f'a choice and the rest of its sentence have {len(ids)} tokens, more than '
                                           f'--context, {model.context}')
        yield ScoredSpan([*seen, *ids][-model.context - 1:], len(ids), place)


# Any text

def logprobs(model, texts: Iterable[tuple[str, str]], stride: int | None = None, boundary: str = 'endoftext',
             progress: Progress = lambda done, total: None) -> Iterator[dict]:
    """For each pair of a prompt and a text: the text's tokens, their ids and log-probabilities, each given the prompt
    and the tokens before it, and the sum of them.

    A first token with nothing before it (boundary 'none', no prompt) has None, and no part in the sum.
    """
    enc, texts = model.enc, list(texts)
    start, stride = prefix(enc, boundary), check_windows(model.context, stride)
    before = [[*start, *enc.encode(prompt)] for prompt, _ in texts]
    after = [enc.encode(text) for _, text in texts]
    scored = model.score(window for number, (seen, ids) in enumerate(zip(before, after, strict=True))
                         for window in windows([*seen, *ids], model.context, stride, max(1, len(seen)), number))
    parts = itertools.groupby(scored, lambda each: each[0].place)
    upcoming = next(parts, None)
    for number, ((prompt, text), ids) in enumerate(zip(texts, after, strict=True)):
        values = []
        if upcoming and upcoming[0] == number:  # a text with nothing to score has no part
            values = [float(x) for _, scores in upcoming[1] for x in scores.log_probabilities]
            upcoming = next(parts, None)
        progress(1, len(texts))
        yield {'prompt': prompt, 'text': text, 'tokens': [enc.decode([id]) for id in ids], 'ids': ids,
               'logprobs': [None] * (len(ids) - len(values)) + values, 'total': math.fsum(values)}
