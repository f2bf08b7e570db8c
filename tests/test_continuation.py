"""The text of a sample while its tokens come, against brute force."""
import itertools

import hypothesis
import pytest
from hypothesis import strategies as st
from tiny_vocab import tiny_bpe

from encoder import Encoder
from generation.continuation import Continuation

LETTERS = 'abé日😀'
stops = st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3)
quickly = hypothesis.settings(deadline=None, max_examples=300)


class Tokens:
    """An encoder whose token i is the i-th of some strings of bytes."""
    errors = 'replace'

    def __init__(self, tokens):
        self.tokens = tokens

    def decode_bytes(self, ids):
        return b''.join(self.tokens[i] for i in ids)


@st.composite
def split_texts(draw):
    """A text, and its UTF-8 cut anywhere, also within characters and into nothing."""
    text = draw(st.text(LETTERS, max_size=30))
    data = text.encode()
    cuts = [0, *sorted(draw(st.lists(st.integers(0, len(data)), max_size=len(data)))), len(data)]
    return text, [data[first:last] for first, last in itertools.pairwise(cuts)]


def brute_force(text, stops):
    """What is left of the text, and how many of its characters had to come for that; None where it did not
    end."""
    for n in range(1, len(text) + 1):
        ended = [n - len(stop) for stop in stops if text[:n].endswith(stop)]
        if ended:
            return text[:min(ended)], n
    return text, None


@quickly
@hypothesis.given(split_texts(), stops)
def test_text_and_what_is_shown_of_it_are_those_of_brute_force(split, stops):
    text, tokens = split
    expected, n_needed = brute_force(text, stops)
    row = Continuation(Tokens(tokens), stops)
    shown = ''
    n_characters = []  # that are whole after each token
    for i in range(len(tokens)):
        row.add(i, -1.5)
        n_characters.append(len(b''.join(tokens[:i + 1]).decode(errors='ignore')))
        shown += row.read_new()
        assert '\ufffd' not in row.text
        assert expected.startswith(shown)  # nothing has to be taken back
        held = row.text.removeprefix(shown)
        assert row.text == shown + held
        assert not held or any(
            stop.startswith(held) and stop != held for stop in stops
        )  # nor is more held than needed
    row.close()
    assert shown + row.read_new() == row.text == expected
    assert row.finished == (n_needed is not None)
    n_tokens = len(tokens) if n_needed is None else next(
        i for i, n in enumerate(n_characters, 1) if n >= n_needed)
    assert row.tokens == list(range(n_tokens))


@quickly
@hypothesis.given(split_texts(), split_texts(), stops)
def test_where_tokens_are_cut_changes_nothing(split, other, stops):
    texts = []
    for tokens in (split[1], [split[0].encode()], [bytes([each]) for each in split[0].encode()]):
        row = Continuation(Tokens(tokens), stops)
        for i in range(len(tokens)):
            row.add(i, -1.5)
        row.close()
        texts.append((row.text, row.finished))
    assert texts[0] == texts[1] == texts[2]


@quickly
@hypothesis.given(st.lists(st.one_of(st.integers(0, 556), st.integers(128, 255)), max_size=20))
def test_any_tokens_give_the_text_that_decode_gives(tokens):
    enc = Encoder(*tiny_bpe())
    row = Continuation(enc)
    shown = ''
    for token in tokens:
        row.add(token, -1.5)
        shown += row.read_new()
    row.close()
    assert row.text == shown + row.read_new() == enc.decode(tokens)
    assert (row.tokens, row.logprobs, row.finished) == (tokens, [-1.5] * len(tokens), False)


@pytest.mark.parametrize('tokens, stops, shown, text', [
    ([b'a', b'b', b'c'], ['bc'], ['a', '', ''], 'a'),
    ([b'a', b'b', b'd'], ['bc'], ['a', '', 'bd'], 'abd'),
    ([b'a', b'b', b'b', b'c'], ['bc'], ['a', '', 'b', ''], 'ab'),  # the first b was the beginning of nothing
    ([b'xabcy'], ['bc', 'abc'], ['x'], 'x'),  # complete at once: where the earlier begins
    ([b'xabcy'], ['ab', 'bc'], ['x'], 'x'),
    ([b'xabcy'], ['abcy', 'b'], ['xa'], 'xa'),  # b is complete first
    ([b'a', b'\xe6\x97', b'\xa5'], ['日'], ['a', '', ''], 'a'),
    ([b'a', b'\xe6\x97', b'b'], [], ['a', '', '\ufffdb'], 'a\ufffdb'),
    ([b'a'], ['a'], [''], ''),
])
def test_pieces_written_out(tokens, stops, shown, text):
    row = Continuation(Tokens(tokens), stops)
    pieces = []
    for i in range(len(tokens)):
        row.add(i, -1.5)
        pieces.append(row.read_new())
    row.close()
    assert (pieces, row.text) == (shown, text)
    assert row.read_new() == ''


def test_the_end_within_a_character_is_u_fffd_and_may_complete_a_stop():
    row = Continuation(Tokens([b'ab\xe6\x97']))
    row.add(0, -1.5)
    assert row.read_new() == 'ab'
    row.close()
    assert (row.read_new(), row.text) == ('\ufffd', 'ab\ufffd')


def test_what_may_be_the_beginning_of_a_stop_is_shown_when_no_more_comes():
    row = Continuation(Tokens([b'one <|end']), ['<|end|>'])
    row.add(0, -1.5)
    assert row.read_new() == 'one '
    row.close()
    assert (row.read_new(), row.finished) == ('<|end', False)


def test_nothing_is_added_to_what_is_finished():
    row = Continuation(Tokens([b'a.', b'b']), ['.'])
    row.add(0, -1.5)
    row.add(1, -1.5)
    row.close()
    assert (row.text, row.tokens, row.finished) == ('a', [0], True)


def test_a_single_stop_is_one_text():
    row = Continuation(Tokens([b'a def b']), 'def ')
    row.add(0, -1.5)
    assert row.text == 'a ' and row.finished
