"""Ids against tiktoken, an independent implementation: always on a small vocabulary, on the real one where
it is."""

import functools
import glob
import itertools
import os
import random
import sysconfig
import tracemalloc

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vocab import (
    EOT,
    PATTERN,
    SHARED,
    in_merge_order,
    learned_bpe,
    real_merges,
    shared,
    tiktoken_encoding,
    tiny_bpe,
    write_vocab,
)

import encoder
from encoder import Encoder, bytes_to_unicode, get_encoder
from errors import InputError
from storage.vocabulary_files import SpecialTokens

ODD_TEXTS = [
    '',
    ' ',
    '\n',
    '  \n',
    'a',
    ' a',
    'a ',
    'a  ',
    '  a',
    '\t\ta\r\n b',
    'x\n\n\ny',
    'tabs\t\t\tand \t mixed  \n  ends  ',
    "'l",
    "'lx 'l",
    "x'",
    "I'll we've you're he's don't I'm he'd 'tis '90s rock'n'roll ''s '' 'll'' 'LL I'LL I'Ll 're're",
    "l'été '’s don’t",
    'abc123def 456ghi 7 89',
    'x=1;y<=2 //***---!!! ...',
    'snake_case __init__ CamelCase',
    'control \x00\x01\x07\x1b[0m\x7f chars',
    'a\x1cb \x1d c\x1e\x1f\x1f d \x1c\x1d  \x1ee',
    '\x85next\x85\x85 line',
    'nbsp\xa0here\xa0\xa0 and \u2003em\u3000wide \u1680\u180e\u200b\u2028\u2029\u202f\u205f\ufeff end',
    '😀 😀😀 👩‍👩‍👧‍👦 🇫🇷 👍🏽!',
    '你好，世界。今天天气很好！',
    '日本語のテキスト、カタカナ 漢字',
    '한국어 텍스트',
    'שלום עולם ברוך',
    'مرحبا بالعالم ٣٤٥',
    'हिन्दी में नमस्ते',
    'ภาษาไทย',
    'e\u0301 combining a\u0308\u0301',
    'Ⅷ ½ x² ①②',
    f'a{EOT}b',
    f'{EOT}',
    f' {EOT} {EOT}{EOT}',
    '<|endoftext',
    '\U0010ffff\ue000 private',
    'ÿ\xadsoft',
]
CHARACTERS = st.one_of(
    st.sampled_from("abcstrelv'dmSLé世  \n\t\r\0\x0b\x1c\x1d\x1e\x1f\x85\xa0\u180e\u2003\u200b\u3000"
                    "012٣½².-_!😀\u0301𝟘"),
    st.characters(exclude_categories=('Cs', 'Cn')))
TEXT = st.text(CHARACTERS, max_size=60)
APOSTROPHES = st.text(st.sampled_from("stmdrevlLa1. \n\xa0’" + 4 * "'"), max_size=30)


@functools.cache
def tiny():  # -> ours, tiktoken's
    vocabulary, merges = tiny_bpe()
    return Encoder(vocabulary, merges), tiktoken_encoding(vocabulary, merges)


@functools.cache
def real():
    merges = real_merges()
    return get_encoder('vocab', SHARED), tiktoken_encoding(shared('vocab', 'encoder.json'), merges)


@functools.cache
def learned():
    vocabulary, merges = learned_bpe()
    return Encoder(vocabulary, merges), tiktoken_encoding(vocabulary, merges)


@pytest.fixture(params=[tiny, learned, real], ids=['tiny', 'learned', 'real'])
def both(request):
    return request.param()


def test_bytes_to_unicode_is_reversible_and_printable():
    symbols = bytes_to_unicode()
    assert sorted(symbols) == list(range(256)) and len(set(symbols.values())) == 256
    assert all(
        len(symbol) == 1 and symbol.isprintable() and not symbol.isspace() for symbol in symbols.values()
    )
    assert (symbols[ord(' ')], symbols[ord('\n')], symbols[ord('A')], symbols[0xFF]) == ('Ġ', 'Ċ', 'A', 'ÿ')


def test_literal_ids():
    enc, _ = real()
    assert enc.encode('Hello world') == [15496, 995]
    assert enc.encode(EOT) == [27, 91, 437, 1659, 5239, 91, 29]
    assert enc.encode(' ' + EOT) == [1279, 91, 437, 1659, 5239, 91, 29]
    assert enc.encode(f'Hello world{EOT}', allowed_special=True) == [15496, 995, 50256]
    assert (enc.eot, enc.n_vocab) == (50256, 50257)
    assert [enc.encoder[symbol] for symbol in bytes_to_unicode().values()] == list(range(256))


@pytest.mark.parametrize('text', ODD_TEXTS, ids=ascii)
def test_odd_texts(both, text):
    enc, reference = both
    assert enc.encode(text) == reference.encode_ordinary(text)
    assert enc.encode(text, allowed_special=True) == reference.encode(text, allowed_special='all')
    assert enc.decode(enc.encode(text)) == text


def test_wikitext(both):
    enc, reference = both
    with open(shared('corpus', 'wikitext2_valid.txt'), encoding='utf-8', newline='') as file:
        text = file.read()
    assert enc.encode(text) == reference.encode_ordinary(text)


def test_standard_library(both):
    enc, reference = both
    names = sorted(glob.glob(os.path.join(sysconfig.get_path('stdlib'), '*.py')))[::12]
    for name in names:
        with open(name, encoding='utf-8', newline='') as file:
            text = file.read()
        assert enc.encode(text) == reference.encode_ordinary(text), name
    assert names


@settings(deadline=None)
@given(TEXT)
def test_any_text(text):
    enc, reference = tiny()
    ids = enc.encode(text)
    assert ids == reference.encode_ordinary(text)
    assert enc.decode(ids) == text


@settings(deadline=None, max_examples=500)
@given(st.one_of(TEXT, APOSTROPHES))
def test_pieces_are_those_of_tiktokens_pattern(text):
    assert encoder.PATTERN.findall(text) == regex.findall(PATTERN, text)


@pytest.mark.parametrize('alphabet', ['a', 'ab', 'the ', 'etaoinshrdlu', '-=', '世界é'])
def test_pieces_of_any_length(both, alphabet):
    enc, reference = both
    draw = random.Random(alphabet)
    for length in [*range(1, 40), 100, 254, 255, 256, 333]:
        text = ''.join(draw.choices(alphabet, k=length))
        assert enc.encode(text) == reference.encode_ordinary(text)


@pytest.mark.parametrize('letter', 'ae-')
def test_a_long_run_of_one_letter(both, letter):
    enc, reference = both
    assert enc.encode(letter * 10**5) == reference.encode_ordinary(letter * 10**5)


def test_long_random_word(both):
    enc, reference = both
    text = ''.join(random.Random(1).choices('abcdefghijklmnopqrstuvwxyz', k=60000))
    assert enc.encode(text) == reference.encode_ordinary(text)


def naive_merge(symbols, merges):
    """The rule itself: the lowest-ranked pair, leftmost first, again after each merge."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    symbols = list(symbols)
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]
        if not found:
            return symbols
        i = min(found)[1]
        symbols[i:i + 2] = [symbols[i] + symbols[i + 1]]


def test_merges_in_any_order():
    pairs = [
        ('ab', 'a'),
        ('aa', 'a'),
        ('b', 'ab'),
        ('a', 'b'),
        ('a', 'a'),
        ('bab', 'aa'),
        ('b', 'b'),
        ('bb', 'a'),
    ]
    symbols = dict.fromkeys([*bytes_to_unicode().values(), *map(''.join, pairs), EOT])
    enc = Encoder({symbol: id for id, symbol in enumerate(symbols)}, pairs)
    for letters in itertools.chain.from_iterable(itertools.product('ab', repeat=n) for n in range(1, 11)):
        assert [enc.decoder[id] for id in enc.encode(''.join(letters))] == naive_merge(letters, pairs)


@settings(deadline=None, max_examples=50)
@given(st.randoms(use_true_random=False))
def test_merges_in_a_random_order(draw):
    symbols, pairs = list('abc'), []
    for _ in range(12):
        pairs.append((draw.choice(symbols), draw.choice(symbols)))
        symbols.append(''.join(pairs[-1]))
    pairs = list(dict.fromkeys(pairs))
    draw.shuffle(pairs)
    vocabulary = {
        symbol: id for id, symbol in enumerate(dict.fromkeys([*bytes_to_unicode().values(), *symbols]))
    }
    enc = Encoder(vocabulary, pairs)
    words = [''.join(draw.choices('abc', k=draw.randrange(1, 30))) for _ in range(60)]
    expected = [symbol for word in words for symbol in [*naive_merge(word, pairs), 'Ċ']]
    assert [enc.decoder[id] for id in enc.encode('\n'.join([*words, '']))] == expected


def test_ids_need_not_be_in_merge_order_and_may_have_gaps():
    vocabulary, merges = tiny_bpe()
    ids = random.Random(2).sample(range(3 * len(vocabulary)), len(vocabulary))
    shuffled = dict(zip(vocabulary, ids, strict=True))
    enc = Encoder(shuffled, merges)
    renumbered, back = in_merge_order(shuffled, merges)
    text = ' '.join(ODD_TEXTS) + 'the text wrapper ' * 2000 + 'thewrapper' * 3000
    assert enc.encode(text) == [
        back[id] for id in tiktoken_encoding(renumbered, merges).encode_ordinary(text)
    ]
    assert enc.decode(enc.encode(text)) == text
    assert enc.n_vocab == max(ids) + 1


def test_an_absurdly_large_id_takes_no_memory():
    vocabulary, merges = tiny_bpe()
    tracemalloc.start()
    enc = Encoder({**vocabulary, 'far': 2**31 - 1}, merges)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20 and enc.n_vocab == 2**31
    assert enc.encode(' the lighthouse') == Encoder(vocabulary, merges).encode(' the lighthouse')


def test_vocabulary_without_merges():
    enc = Encoder({symbol: id for id, symbol in enumerate([*bytes_to_unicode().values(), EOT])}, [])
    text = 'né 你好 ' * 10000
    symbols = bytes_to_unicode()
    assert enc.encode(text) == [enc.encoder[symbols[byte]] for byte in text.encode()]
    assert enc.decode(enc.encode(text)) == text
    assert (enc.eot, enc.n_vocab) == (256, 257)
    assert enc.encode('a' * 10**5) == [enc.encoder['a']] * 10**5


def test_vocabulary_without_end_of_text():
    enc = Encoder({symbol: id for id, symbol in enumerate(bytes_to_unicode().values())}, [])
    assert enc.eot is None
    assert enc.encode(EOT, allowed_special=True) == enc.encode(EOT) and len(enc.encode(EOT)) == len(EOT)


def special(*tokens, end=None):
    """An Encoder with special tokens, whose ids begin with 600."""
    vocabulary, merges = tiny_bpe()
    return Encoder({**vocabulary, **{token: 600 + i for i, token in enumerate(tokens)}}, merges,
                   special=SpecialTokens(tokens, end))


def test_special_tokens_are_encoded_where_they_are_asked_for():
    enc = special('</s>', '<|a b|>', '<|a b|>c', '<|é|>', end='</s>')
    plain, _ = tiny()
    text = 'one </s><|a b|>cd<|a b|> <|é|>\n<|a b <|a b|'
    assert enc.encode(text) == plain.encode(text)
    assert enc.encode(text, allowed_special=True) == [
        *plain.encode('one '), 600, 602, *plain.encode('d'), 601, *plain.encode(' '), 603,
        *plain.encode('\n<|a b <|a b|')]
    assert enc.decode(enc.encode(text, allowed_special=True)) == text
    assert (enc.eot, enc.n_vocab, enc.decoder[603]) == (600, 604, '<|é|>')
    # What is not listed is text, even <|endoftext|>.
    assert enc.encode(EOT, allowed_special=True) == plain.encode(EOT)
    assert special('</s>').eot is None


@pytest.mark.parametrize('tokens, message', [
    (('é',), "'é' can be no special token: it stands for other bytes in encoder.json"),
    (('absent',), "encoder.json lacks 'absent', a byte, special token"),
])
def test_a_special_token_that_cannot_be_one_is_refused(tokens, message):
    vocabulary, merges = tiny_bpe()
    with pytest.raises(InputError, match=message):
        Encoder(vocabulary, merges, special=SpecialTokens(tokens, None))


def test_added_token_that_is_not_spelt_in_byte_symbols():
    vocabulary, merges = tiny_bpe()
    enc = Encoder({**vocabulary, '<a b▁\ud800>': 9999}, merges)
    assert enc.decode([9999]).startswith('<a b▁')


def test_what_is_remembered_is_bounded():
    vocabulary, merges = tiny_bpe()
    enc, reference = Encoder(vocabulary, merges), tiny()[1]
    text = ' '.join(f'word{i}' for i in range(encoder.CACHED_PIECES + 1000)) + ' ' + 'x' * 10**5
    assert enc.encode(text) == reference.encode_ordinary(text)
    assert enc.bpe.cache_info().currsize == encoder.CACHED_PIECES


def test_lone_surrogate_is_named_by_its_offset():
    enc, _ = tiny()
    with pytest.raises(InputError, match='offset 3 '):
        enc.encode('abc\udc80d')
    with pytest.raises(InputError, match=f'offset {len(EOT) + 1} '):
        enc.encode(f'a{EOT}\ud83d', allowed_special=True)
    with pytest.raises(InputError, match='offset 100004 '):
        enc.encode('a' * 100000 + '世界ab\ud83d\ude00')


# Decoding


@settings(deadline=None)
@given(st.lists(st.integers(0, 556), max_size=30))
def test_decode_never_fails_on_ids_of_the_vocabulary(ids):
    enc, reference = tiny()
    assert enc.decode(ids) == enc.decode(np.array(ids, np.uint16)) == reference.decode(ids)


def test_decode_of_any_iterable_of_integers():
    enc, _ = tiny()
    ids = enc.encode('the text')
    assert (
        enc.decode(tuple(ids))
        == enc.decode(iter(ids))
        == enc.decode(list(np.array(ids, np.int32)))
        == 'the text'
    )
    assert enc.decode([]) == enc.decode(np.array([])) == ''
    assert enc.decode(enc.encode('é')[:1]) == '\ufffd'


@pytest.mark.parametrize('bad', [-1, 557, 10**30, 1.0, '5', None, np.float32(3), [1]], ids=repr)
def test_decode_refuses_what_is_not_an_id(bad):
    enc, _ = tiny()
    assert enc.n_vocab == 557
    expected = bad if isinstance(bad, int) else 'cannot be interpreted as an integer'
    with pytest.raises(InputError, match=f'token id .*{expected}: expected 0 to 556; give its model'):
        enc.decode([1, 2, bad])


def test_decode_refuses_gaps_and_arrays_of_other_kinds():
    vocabulary, merges = tiny_bpe()
    enc = Encoder({**vocabulary, 'extra': 600}, merges)
    with pytest.raises(InputError, match='token id 599: expected 0 to 600;'):
        enc.decode([599])
    for array in (np.array([1.0]), np.array([[1, 2]])):
        with pytest.raises(InputError, match='expected 0 to 600'):
            enc.decode(array)


# Loading


def test_get_encoder(tmp_path):
    vocabulary, merges = write_vocab(tmp_path / 'tiny')
    enc = get_encoder('tiny', str(tmp_path))
    assert enc.encoder == vocabulary and enc.n_vocab == len(vocabulary)
    text = 'the wrapped text'
    assert enc.encode(text) == tiktoken_encoding(
        str(tmp_path / 'tiny' / 'encoder.json'), merges
    ).encode_ordinary(text)
    assert len(enc.encode(text)) < len(text)


def test_a_fingerprint_is_of_all_that_ids_mean(tmp_path):
    vocabulary, merges = tiny_bpe()
    vocabulary = {**vocabulary, '</s>': 557}
    prints = [Encoder(vocabulary, merges, special=special and SpecialTokens(*special)).fingerprint
              for special in (None, ([EOT], EOT), (['</s>'], None), (['</s>'], '</s>'))]
    assert prints[0] == prints[1] and len(set(prints)) == 3 and all(len(each) == 16 for each in prints)
    assert Encoder(*tiny_bpe()).fingerprint not in prints
