"""Tokens that are guessed from the text: where guesses come from, and that samples stay the same."""
import numpy as np
import pytest
import toy
from test_generator import assert_greedy, compiled, made, operations, passes, scored_rows_of  # noqa: F401

from fast.quantized import quantize
from generation import generator
from generation.prompt_lookup import FIRST, MAX_GUESSES, WORTHWHILE, PromptLookup

pytestmark = pytest.mark.slow

LINE = [11, 12, 13, 14, 15, 16]


def guesses(lookup, tokens, limit=100):
    return lookup.guess(np.array(tokens, np.int32), limit).tolist()


def test_a_guess_is_what_followed_the_last_such_place():
    text = [*LINE, 20, 21, *LINE, 30, 31, 32, 33]
    assert guesses(PromptLookup(), [*text, *LINE[:FIRST]])[:4] == [15, 16, 30, 31]


def test_too_few_equal_tokens_give_no_guess():
    assert guesses(PromptLookup(), [*LINE, 20, *LINE[:FIRST - 1]]) == []
    assert guesses(PromptLookup(), LINE) == guesses(PromptLookup(), [1]) == []


def test_a_period_goes_on():
    assert guesses(PromptLookup(), [1, 2, 3] * 3) == [1, 2, 3] * (MAX_GUESSES // 3)


def test_a_limit():
    assert guesses(PromptLookup(), [1] * 9, WORTHWHILE) == [1] * WORTHWHILE
    assert guesses(PromptLookup(), [1] * 9, WORTHWHILE - 1) == []


def test_after_right_guesses_the_text_is_followed_across_another_token():
    lookup, text = PromptLookup(), [*range(20), 90, 0, 1, 2, 3]
    assert guesses(lookup, text)[:6] == [4, 5, 6, 7, 8, 9]
    lookup.learn(5)
    assert guesses(lookup, [*text, 4, 5, 6, 7, 8, 77])[:3] == [10, 11, 12]


def test_a_token_that_is_drawn_alone_moves_the_place_too():
    lookup, text = PromptLookup(), [*range(20), 90, 0, 1, 2, 3]
    assert guesses(lookup, text, limit=WORTHWHILE - 1) == []
    assert guesses(lookup, [*text, 4])[:2] == [5, 6]


def test_any_id_has_a_character():
    ids = [0xD800, 0xDFFF, 0x110000, 2**31 - 2]
    assert guesses(PromptLookup(), [*ids, 7, 8, *ids])[:2] == [7, 8]


def test_after_wrong_guesses_more_tokens_must_be_equal():
    lookup, text = PromptLookup(), [*range(20), 90, 0, 1, 2, 3]
    assert guesses(lookup, text)
    lookup.learn(WORTHWHILE - 1)
    assert guesses(lookup, text) == []
    assert guesses(lookup, [*text, 4])[:2] == [5, 6]


# Samples

def repeating(n_ctx=64, **sizes):
    """Sizes and weights of a model whose text often repeats itself."""
    hp = toy.hparams(n_vocab=24, n_ctx=n_ctx, **sizes)
    return hp, toy.weights(hp, seed=2, scale=0.3)


@pytest.mark.usefixtures('compiled')
@pytest.mark.parametrize('n_ctx, length', [(64, 50), (24, 120)])  # with and without a window that slides
def test_the_likeliest_tokens_are_those_of_numpy(monkeypatch, n_ctx, length):
    sizes = passes(monkeypatch)
    assert_greedy(*repeating(n_ctx), [[3, 1, 4, 1, 5]], length)
    assert len(sizes) < length


@pytest.mark.usefixtures('compiled')
@pytest.mark.parametrize('controls', [{}, {'top_k': 5}, {'top_p': 0.9, 'repetition_penalty': 1.02}])
@pytest.mark.parametrize('n_ctx', [64, 24])
def test_draws_are_those_of_single_steps(monkeypatch, controls, n_ctx):
    """Each seed: the same tokens and log-probabilities, in fewer passes."""
    gpt2 = made(*repeating(n_ctx))
    sizes = passes(monkeypatch)
    n_passes = {}
    for seed in range(6):
        options = {'length': 100, 'temperature': 0.5, **controls}
        results = {}
        for prompt_lookup in (False, True):
            sizes.clear()
            results[prompt_lookup] = scored_rows_of(gpt2, [[3, 1, 4]], [[seed]], prompt_lookup=prompt_lookup,
                                                    **options)
            n_passes[prompt_lookup] = n_passes.get(prompt_lookup, 0) + len(sizes)
        assert results[True][0] == results[False][0]
        np.testing.assert_allclose(results[True][1], results[False][1], atol=1e-4)
    assert n_passes[True] < n_passes[False]


@pytest.mark.parametrize('convert, contexts, rounds', [
    (lambda name, value: quantize(name, value, 'int8'), [[3, 1, 4]], False),
    (lambda name, value: value, [[3, 1, 4]] * 2, False),
    (lambda name, value: value, [[3, 1, 4]], True)])
def test_rounded_products_and_several_rows_go_token_by_token(monkeypatch, convert, contexts, rounds):
    monkeypatch.setattr(generator, 'rounds_products', lambda: rounds)
    gpt2 = made(*repeating(), convert)
    sizes = passes(monkeypatch)
    scored_rows_of(gpt2, contexts, [[1]] * len(contexts), length=40, temperature=0)
    assert sizes == [3] + [1] * 39
