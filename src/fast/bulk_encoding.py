"""Encoding of many long texts by the library gigatoken: the ids of encoder.py at some 15 times its speed.

gigatoken is young. It is used only if it reproduces the vocabulary and the ids of a fixed text, and each
batch of ids must decode to its texts. Where it is not installed or fails, encoder.py does the same work.
"""
import contextlib
import functools
import json
import sys
import unicodedata

import numpy as np

MAX_VOCABULARY = 1 << 20  # gigatoken takes memory for all ids up to the largest
MAX_TEXT_BYTES = 1 << 27  # for one tokenizer, which remembers all words: 0.8 GB if no word comes twice
MAX_CODE = 0x323B0  # above the letters of Unicode 15.1
SELF_CHECK = ("I'll we've you'RE 'tis ''s  x=1;//**\t\t<|endoftext|>\r\n\n  def f(a):\n\tл’été\x1c \x85\xa0"
              "\u3000½😀👩‍👧 你好，世界。नमस्ते ภาษา e\u0301\u180e\u200b 12345 ①²٣" + 'ab' * 99 + ' ' * 99 + '\0')


class BulkEncoder:
    """Encodes lists of texts with an Encoder's vocabulary.

    parallel: whether gigatoken uses all cores, or as many as the environment's RAYON_NUM_THREADS says.
    """

    def __init__(self, enc, parallel: bool = True):
        self.enc, self.parallel = enc, parallel
        self.tokenizer, self.n_bytes = load_tokenizer(enc), 0

    def encode(self, texts: list[str]) -> list[np.ndarray]:  # each int32 or uint32 [n_tokens]
        """The ids that the Encoder gives for each text, of which none is empty."""
        if self.n_bytes > MAX_TEXT_BYTES:
            self.tokenizer, self.n_bytes = load_tokenizer(self.enc), 0
        if self.tokenizer is None:
            return encode_slowly(self.enc, texts)
        import awkward
        data = [text.encode() if has_known_characters(text) else b'' for text in texts]
        self.n_bytes += sum(map(len, data))
        batch = self.tokenizer.encode_batch(data, parallel=self.parallel)
        ids, ends = np.asarray(awkward.flatten(batch)), np.cumsum(np.asarray(awkward.num(batch)))
        if self.tokenizer.decode(ids) != b''.join(data):
            print('warning: gigatoken changed a text; encoder.py encodes this batch instead', file=sys.stderr)
            return encode_slowly(self.enc, texts)
        rows = zip(texts, np.split(ids, ends[:-1]), strict=True)
        return [row if len(row) else encode_slowly(self.enc, [text])[0] for text, row in rows]


def encode_slowly(enc, texts):  # list of str -> list of int32 [n_tokens]
    return [np.array(enc.encode(text), np.int32) for text in texts]


def load_tokenizer(enc):  # -> gigatoken.Tokenizer, or None where encoder.py has to do the work
    try:
        import gigatoken
    except ImportError:
        return None
    if enc.n_vocab > MAX_VOCABULARY:
        return None
    splitter = {'type': 'ByteLevel', 'add_prefix_space': False, 'use_regex': True}
    model = {'type': 'BPE', 'vocab': enc.encoder, 'merges': list(enc.bpe_ranks)}
    # Without a list of added_tokens, <|endoftext|> in a text is text like any other.
    content = json.dumps({'pre_tokenizer': splitter, 'model': model})
    with contextlib.suppress(Exception):  # gigatoken does not document what it raises
        tokenizer = gigatoken.Tokenizer.from_json(content)
        special = {id: enc.token_bytes[id] for id in enc.special.values()}  # these may be spelt otherwise
        same_bytes = {**tokenizer.vocab, **special} == enc.token_bytes
        if same_bytes and tokenizer.encode(SELF_CHECK).tolist() == enc.encode(SELF_CHECK):
            return tokenizer
    print('warning: gigatoken does not reproduce this vocabulary, so encoding is slower', file=sys.stderr)
    return None


def has_known_characters(text: str) -> bool:
    """Whether this Python's Unicode has all characters of a text. gigatoken and `regex` may differ in whether
    newer characters are letters."""
    if text.isascii():
        return True
    codes = np.frombuffer(text.encode('utf-32-le'), '<u4')
    return bool(known_codes().take(codes, mode='clip').all())


@functools.cache
def known_codes():  # -> bool [MAX_CODE + 1], the last False
    return np.array([*(unicodedata.category(chr(code)) != 'Cn' for code in range(MAX_CODE)), False])
