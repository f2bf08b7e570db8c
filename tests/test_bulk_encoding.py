"""gigatoken gives the ids of encoder.py and tiktoken, and encoder.py does the work wherever it would not."""
import functools
import random
import sys
import unicodedata
from unittest import mock

import gigatoken
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoder import APOSTROPHES, ODD_TEXTS, TEXT, learned, real, tiny
from tiny_vocab import BYTES, ENGLISH, EOT, tiny_bpe

from encoder import Encoder
from fast import bulk_encoding
from fast.bulk_encoding import BulkEncoder
from storage.vocabulary_files import SpecialTokens

ANY_TEXTS = st.lists(
    st.one_of(TEXT, APOSTROPHES, st.text(st.characters(exclude_categories=['Cs']))).filter(bool),
    min_size=1,
    max_size=5,
)


@pytest.fixture(autouse=True, scope='module')
def from_the_first_text_on():
    with mock.patch.object(bulk_encoding, 'MIN_CHARS', 0):
        yield


@functools.cache
def three(pair):  # -> Encoder, tiktoken.Encoding, function of a list of texts
    enc, reference = pair()
    return enc, reference, bulk_encoder(enc)


def bulk_encoder(enc):
    """A function by gigatoken of a list of texts."""
    encoder = BulkEncoder(enc)
    assert encoder.encode([]) == [] and encoder.tokenizer
    return lambda texts: [row.tolist() for row in encoder.encode(texts)]


def with_tokenizer(enc, **changes):
    """A BulkEncoder whose tokenizer records its calls."""
    encoder = BulkEncoder(enc)
    encoder.encode([])
    encoder.tokenizer = mock.Mock(wraps=encoder.tokenizer, **changes)
    return encoder


@pytest.fixture(params=[tiny, learned, real], ids=['tiny', 'learned', 'real'])
def encoders(request):
    return three(request.param)


def test_odd_texts(encoders, capsys):
    enc, reference, encode = encoders
    texts = [text for text in ODD_TEXTS if text]
    assert encode(texts) == [enc.encode(text) for text in texts] == reference.encode_ordinary_batch(texts)
    assert capsys.readouterr() == ('', '')


def test_long_runs(encoders):
    enc, reference, encode = encoders
    texts = [unit * 10**5 for unit in ('a', ' ', '-', '\n', '世', 'ab', '1', '\0')]
    texts.append(''.join(random.Random(1).choices('abcdefghijklmnopqrstuvwxyz', k=10**5)))
    assert encode(texts) == [enc.encode(text) for text in texts] == reference.encode_ordinary_batch(texts)


@settings(deadline=None, max_examples=300)
@given(ANY_TEXTS)
def test_any_texts(texts):
    for pair in (tiny, learned):
        enc, _, encode = three(pair)
        assert encode(texts) == [enc.encode(text) for text in texts]


@pytest.mark.parametrize('plane', range(3))
def test_characters_of_all_kinds(plane):
    enc, _, encode = three(learned)
    codes = [code for code in range(plane << 16, (plane + 1) << 16) if not 0xD800 <= code < 0xE000]
    texts = [f'a{chr(code)}1{chr(code)}-{chr(code)} {chr(code)}a' for code in codes[::7]]
    assert encode(texts) == [enc.encode(text) for text in texts]


def test_characters_that_this_python_does_not_know_are_left_to_encoder_py():
    enc, _, encode = three(tiny)
    new = next(chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == 'Cn')
    bulk = with_tokenizer(enc)
    texts = ['old é', f'new {new}', 'old', 'plane 15 \U000f0000']
    rows = bulk.encode(texts)
    assert [row.tolist() for row in rows] == [enc.encode(text) for text in texts] == encode(texts)
    assert bulk.tokenizer.encode_batch.call_args[0] == ([b'old \xc3\xa9', b'', b'old', b''],)


def test_a_batch_that_does_not_decode_to_its_texts_is_encoded_again():
    enc, _, _ = three(tiny)
    rows = with_tokenizer(enc, decode=lambda ids: b'some other text').encode(['the text', 'é'])
    assert [row.tolist() for row in rows] == [enc.encode('the text'), enc.encode('é')]


@pytest.mark.parametrize('change', [
    {'encode.return_value': np.array([1, 2])}, {'encode.side_effect': ValueError('two\nlines')}])
def test_a_tokenizer_that_fails_its_check_is_not_used(monkeypatch, capsys, change):
    enc, _, _ = three(tiny)
    tokenizer = mock.Mock(wraps=bulk_encoding.load_tokenizer(enc))
    tokenizer.configure_mock(**change)
    monkeypatch.setattr(gigatoken.Tokenizer, 'from_json', lambda text: tokenizer)
    assert [row.tolist() for row in BulkEncoder(enc).encode(['the'])] == [enc.encode('the')]
    assert capsys.readouterr() == ('', 'warning: gigatoken does not reproduce this vocabulary; encoding is '
                                       'slower\n')


def test_without_gigatoken_the_ids_are_the_same(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'gigatoken', None)
    enc, _, _ = three(tiny)
    rows = BulkEncoder(enc).encode([ENGLISH, 'é'])
    assert [row.tolist() for row in rows] == [enc.encode(ENGLISH), enc.encode('é')]
    assert capsys.readouterr() == ('', '')


def test_a_tokenizer_is_made_anew_before_its_cache_grows_large(monkeypatch):
    enc, _, _ = three(tiny)
    monkeypatch.setattr(bulk_encoding, 'MAX_TEXT_BYTES', 100)
    bulk, used = BulkEncoder(enc), []
    for number in range(9):
        assert bulk.encode([f'{number} é' * 10])[0].tolist() == enc.encode(f'{number} é' * 10)
        used.append(bulk.tokenizer)
    assert [used.count(tokenizer) for tokenizer in dict.fromkeys(used)] == [3, 3, 3]


def test_vocabularies_of_all_sorts():
    vocabulary, merges = tiny_bpe()
    ids = random.Random(2).sample(range(3 * len(vocabulary)), len(vocabulary))
    for enc in (
        Encoder(BYTES, []),
        Encoder({**BYTES, EOT: 256}, []),
        Encoder({**vocabulary, '<a b▁>': 9999}, merges),
        Encoder(dict(zip(vocabulary, ids, strict=True)), merges),
        Encoder({**vocabulary, 'ĠÄzebra': 600, 'tree': 601}, merges),
        Encoder({**vocabulary, 'Ġé': 600}, merges, special=SpecialTokens(['Ġé'], 'Ġé')),
    ):
        texts = [ENGLISH, f'a{EOT}b <a b▁> Äzebra Ġé tree', *filter(None, ODD_TEXTS)]
        assert bulk_encoder(enc)(texts) == [enc.encode(text) for text in texts]


def test_an_absurdly_large_id_takes_no_memory():
    vocabulary, merges = tiny_bpe()
    assert bulk_encoding.load_tokenizer(Encoder({**vocabulary, 'far': 2**31 - 1}, merges)) is None


@settings(deadline=None, max_examples=50)
@given(st.randoms(use_true_random=False))
def test_merges_in_a_random_order(draw):
    symbols, pairs = list('abc'), []
    for _ in range(12):
        pairs.append((draw.choice(symbols), draw.choice(symbols)))
        symbols.append(''.join(pairs[-1]))
    pairs = list(dict.fromkeys(pairs))
    draw.shuffle(pairs)
    enc = Encoder({symbol: id for id, symbol in enumerate(dict.fromkeys([*BYTES, *symbols]))}, pairs)
    words = [''.join(draw.choices('abc', k=draw.randrange(1, 30))) for _ in range(60)]
    assert bulk_encoder(enc)(words) == [enc.encode(word) for word in words]
