"""Beam search beside transformers' and beside all texts there are; what ends it, and what is refused."""
import itertools

import numpy as np
import numpy_gpt2
import pytest
import toy
from test_generator import SMALL, compiled, log_softmax, made, operations, rows_of  # noqa: F401
from test_model import transformers_model

from encoder import get_encoder
from errors import InputError
from generation import beam_search, generator

pytestmark = pytest.mark.slow

EOT = '<|endoftext|>'


def ending_model(**sizes):
    """Sizes and weights of a model that often ends its text."""
    hp = toy.hparams(n_ctx=48, **sizes)
    values = toy.weights(hp, scale=0.3)
    end = values['model/wte'][-1]
    values['model/ln_f/b'] += 6.5 * end / (end @ end)
    return hp, values


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A Generator with the small vocabulary, its sizes and weights."""
    models = tmp_path_factory.mktemp('models')
    toy.write_vocab(models / 'toy')
    hp, values = ending_model()
    gpt2 = made(hp, values)
    gpt2.enc = get_encoder('toy', str(models))
    return gpt2, hp, values


class Ids:
    """In place of an encoder: ids whose texts are a character each."""
    errors = 'replace'

    def __init__(self, decoder):
        self.decoder = decoder

    def decode_bytes(self, tokens):
        return bytes(65 + token % 26 for token in tokens)


def made_of_ids(hp, values, ids=None):
    gpt2 = made(hp, values)
    gpt2.enc = Ids(ids or range(hp.n_vocab))
    return gpt2


@pytest.fixture(scope='module')
def peer(world):
    """transformers' beam search with the same weights: the tokens after a context, of all beams."""
    gpt2, hp, values = world
    model = transformers_model(hp, values).eval()
    import torch

    def search(context, beams, length, ends, **controls):
        rows = model.generate(
            torch.tensor([context]), attention_mask=torch.ones(1, len(context), dtype=torch.int64),
            num_beams=beams, num_return_sequences=beams, do_sample=False, max_new_tokens=length,
            length_penalty=1.0, early_stopping=False, eos_token_id=ends, pad_token_id=-1, **controls)
        found = [[token for token in row[len(context):] if token >= 0] for row in rows.tolist()]
        return [row[:row.index(gpt2.enc.eot) + 1] if ends and gpt2.enc.eot in row else row for row in found]
    return search


CONTROLS = [
    ({}, {}),
    ({'repetition_penalty': 1.5}, {'repetition_penalty': 1.5}),
    ({'no_repeat_ngram': 1}, {'no_repeat_ngram_size': 1}),
    ({'logit_bias': {556: 2, 312: -3.5}}, {'sequence_bias': {(556,): 2.0, (312,): -3.5}}),
    ({'logit_bias': {7: 4, 8: 4}, 'repetition_penalty': 1.2, 'no_repeat_ngram': 2},
     {'sequence_bias': {(7,): 4.0, (8,): 4.0}, 'repetition_penalty': 1.2, 'no_repeat_ngram_size': 2})]


@pytest.mark.parametrize('ours, theirs', CONTROLS)
@pytest.mark.parametrize('ends', [None, 556])
def test_the_beams_are_those_of_transformers(world, peer, ours, theirs, ends):
    """The same tokens in the same order; some end before others."""
    lengths = set()
    for seed, beams in enumerate([2, 3, 4, 8, 2, 3, 4, 8]):
        context = np.random.RandomState(seed).randint(0, 556, 1 + 2 * seed).tolist()
        rows = beam_search.search(world[0], context, beams=beams, length=12, stop=EOT if ends else (), **ours)
        assert [row.tokens for row in rows] == peer(context, beams, 12, ends, **theirs)
        assert [row.finished for row in rows] == [bool(ends) and row.tokens[-1] == ends for row in rows]
        lengths |= {len(row.tokens) for row in rows}
    assert lengths == {12} if ends is None else len(lengths) > 2


def test_several_texts_that_end_a_sample(world, peer):
    """As many more continuations are looked at as tokens can end one; in the last case it matters."""
    gpt2, first, second = world[0], *(world[0].enc.encode(letter)[0] for letter in 'zq')
    for seed, beams, bias in ((0, 3, 2), (1, 3, 4), (2, 3, 8), (3, 2, 6)):
        context = np.random.RandomState(seed).randint(0, 556, 4).tolist()
        rows = beam_search.search(gpt2, context, beams=beams, length=12, stop=[EOT, 'z', 'q'],
                                  logit_bias={first: bias, second: bias, gpt2.enc.eot: bias - 3})
        theirs = peer(context, beams, 12, [gpt2.enc.eot, first, second], sequence_bias={
            (first,): float(bias), (second,): float(bias), (gpt2.enc.eot,): bias - 3.0})
        ends = [min(map(row.index, {gpt2.enc.eot, first, second} & {*row}), default=12) for row in theirs]
        assert [row.tokens for row in rows] == [row[:end + 1] for row, end in zip(theirs, ends, strict=True)]


@pytest.mark.parametrize('beams', [2, 5])
def test_texts_that_many_tokens_end(world, beams):
    """Beside a search by NumPy that looks at all tokens: half of them end a text."""
    _, hp, values = world
    gpt2 = made_of_ids(hp, values)
    gpt2.enc.decode_bytes = lambda tokens: bytes(65 + token % 2 for token in tokens)
    for seed in range(3):
        context = np.random.RandomState(seed).randint(0, 556, 5).tolist()
        beam, ended = [(0.0, [])], []
        for n in range(1, 7):
            candidates = []
            for score, tokens in beam:
                p = log_softmax(numpy_gpt2.logits(values, context + tokens, hp.n_head))[-1]
                candidates += [(score + p[token], [*tokens, token]) for token in range(hp.n_vocab)]
            candidates.sort(reverse=True)
            ended += [(score / n, tokens) for score, tokens in candidates[:beams]
                      if tokens[-1] % 2 == 0 or n == 6]
            ended = sorted(ended, reverse=True)[:beams]
            beam = [pair for pair in candidates if pair[1][-1] % 2][:beams]
            if len(ended) == beams and beam[0][0] / n <= ended[-1][0]:
                break
        rows = beam_search.search(gpt2, context, beams=beams, length=6, stop='A')
        assert [row.tokens for row in rows] == [tokens for _, tokens in ended]


@pytest.mark.usefixtures('compiled')
def test_with_beams_for_all_texts_the_likeliest_are_found(monkeypatch):
    """Of 216 texts of three tokens, whose probabilities NumPy computes one by one."""
    monkeypatch.setattr(generator, 'MIN_CACHE', 4)  # so that it grows
    hp = toy.hparams(**SMALL)
    values = toy.weights(hp, scale=0.5)
    rows = beam_search.search(gpt2 := made_of_ids(hp, values), [0, 3, 5], beams=36, length=3)
    scores = {}
    for text in itertools.product(range(6), repeat=3):
        p = log_softmax(numpy_gpt2.logits(values, [0, 3, 5, *text], hp.n_head))
        scores[text] = [p[2 + i, token] for i, token in enumerate(text)]
    likeliest = sorted(scores, key=lambda text: -sum(scores[text]))[:36]
    assert [tuple(row.tokens) for row in rows] == likeliest
    for row in rows:
        np.testing.assert_allclose(row.logprobs, scores[tuple(row.tokens)], atol=1e-4)
    assert gpt2.cache_size == 8


def test_log_probabilities_are_the_models_own_whatever_the_controls(world):
    gpt2, hp, values = world
    context = [5, 5, 9]
    for row in beam_search.search(gpt2, context, beams=3, length=6, **CONTROLS[-1][0]):
        p = log_softmax(numpy_gpt2.logits(values, context + row.tokens, hp.n_head))
        np.testing.assert_allclose(row.logprobs, [p[2 + i, token] for i, token in enumerate(row.tokens)],
                                   atol=1e-4)


def test_characters_of_several_tokens_and_a_text_that_ends_a_beam(world):
    """Each beam decodes its own bytes, whole at the end, and stops before the text."""
    gpt2 = world[0]
    first, second = gpt2.enc.encode('ü')
    rows = beam_search.search(gpt2, [3, 1, 4], beams=8, length=10, stop=EOT,
                              logit_bias={first: 9, second: 9, gpt2.enc.eot: 3})
    assert any(row.finished for row in rows) and any('ü' in row.text for row in rows)
    for row in rows:
        assert row.text == gpt2.enc.decode(row.tokens).removesuffix(EOT)


def test_ids_without_a_text_are_in_no_beam(world):
    gpt2, hp, values = world
    other = made_of_ids(hp, values, range(0, 557, 2))
    tokens = {token for row in beam_search.search(other, [3], beams=4, length=8) for token in row.tokens}
    assert not {token for token in tokens if token % 2}
    assert any(token % 2 for row in beam_search.search(gpt2, [3], beams=4, length=8) for token in row.tokens)


def test_a_token_that_is_ruled_out_is_in_no_beam_even_if_few_are_left():
    """For 16 beams there are 4 texts of one token, and 12 of two."""
    hp = toy.hparams(**SMALL)
    gpt2 = made_of_ids(hp, toy.weights(hp, scale=0.5))
    for length, n in ((1, 4), (2, 12), (3, 16)):
        rows = beam_search.search(gpt2, [0, 3], beams=16, length=length, no_repeat_ngram=1)
        assert len({tuple(row.tokens) for row in rows}) == len(rows) == n
        for row in rows:
            assert len({0, 3, *row.tokens}) == 2 + length


def test_streams_before_and_after(world):
    gpt2 = world[0]
    expected = rows_of(gpt2, [[1, 2], [3]], [[1], [2]], length=6)
    stream = gpt2.stream([[1, 2]], [[1]], length=6)
    next(stream)
    beam_search.search(gpt2, [1, 2], beams=3, length=4)
    with pytest.raises(RuntimeError, match='another stream of this Generator has begun'):
        next(stream)
    assert rows_of(gpt2, [[1, 2], [3]], [[1], [2]], length=6) == expected


def test_beams_may_fill_n_ctx_and_no_more(world):
    gpt2 = world[0]
    (row, _) = beam_search.search(gpt2, [1] * 46, beams=2, length=3)
    assert len(row.tokens) == 3
    with pytest.raises(InputError, match='a prompt of 46 tokens and 4 more exceed n_ctx, 48'):
        beam_search.search(gpt2, [1] * 46, beams=2, length=4)


@pytest.mark.parametrize('options, message', [
    ({'temperature': 0.5}, 'beam search takes no temperature'),
    ({'beams': 0}, 'beams must be 1 or more, not 0'),
    ({'context': []}, 'a context must be a list of ids below 557'),
    ({'context': [557]}, 'a context must be a list of ids below 557'),
    ({'length': 0}, 'length must be 1 or more, not 0'),
    ({'repetition_penalty': 0}, 'repetition_penalty must be above 0'),
    ({'no_repeat_ngram': -1}, 'no_repeat_ngram must be 0 or more'),
    ({'logit_bias': {557: 1}}, 'logit_bias must be .*not 557:1')])
def test_what_cannot_be_searched_is_refused(world, options, message):
    with pytest.raises(InputError, match=message):
        beam_search.search(world[0], **{'context': [1], 'beams': 2, 'length': 2, **options})
