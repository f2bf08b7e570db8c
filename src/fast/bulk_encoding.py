"""Encodes many texts by gigatoken: encoder.py's ids at some 15 times its speed.

It is young: it must give the ids of SELF_CHECK, and each batch must decode to its texts. Otherwise,
or where it is missing, encoder.py works.
"""
import contextlib
import functools
import importlib.util
import json
import math
import sys
import unicodedata

import numpy as np

MIN_CHARS = 1 << 20  # for fewer, loading gigatoken takes too long
MAX_TEXT_BYTES = 1 << 27  # of a tokenizer, which remembers words, in 0.8 GB
SELF_CHECK = ("I'll we've you'RE 'tis  x=1;//**\t\t<|endoftext|>\r\n\n  f(a):\n\tл’été\x1c \x85\xa0\u3000½"
              "😀👩\u200d👧 你好，世界。नमस्ते e\u0301\u180e\u200b 123 ①²٣" + 'ab' * 99 + ' ' * 99 + '\0')


class BulkEncoder:
    """Encodes as an Encoder, in RAYON_NUM_THREADS threads."""

    def __init__(self, enc):
        self.enc, self.tokenizer, self.n_bytes = enc, None, math.inf

    def encode(self, texts):  # -> list of int32 or uint32 [n_tokens]
        if self.n_bytes > MAX_TEXT_BYTES and sum(map(len, texts)) >= MIN_CHARS:
            self.tokenizer, self.n_bytes = load_tokenizer(self.enc), 0
        if self.tokenizer is None or not texts:
            return self.encode_slowly(texts)
        import awkward
        data = [text.encode() if is_known(text) else b'' for text in texts]
        self.n_bytes += sum(map(len, data))
        batch = self.tokenizer.encode_batch(data)
        ids, ends = np.asarray(awkward.flatten(batch)), np.cumsum(np.asarray(awkward.num(batch)))
        if self.tokenizer.decode(ids) != b''.join(data):
            print('warning: gigatoken changed a text; encoder.py encodes it', file=sys.stderr)
            return self.encode_slowly(texts)
        rows = zip(np.split(ids, ends[:-1]), texts, strict=True)
        return [row if len(row) else self.encode_slowly([text])[0] for row, text in rows]

    def encode_slowly(self, texts):
        return [np.array(self.enc.encode(text), np.int32) for text in texts]


def load_tokenizer(enc):  # -> gigatoken.Tokenizer, or None
    if enc.n_vocab > 1 << 20 or not importlib.util.find_spec('gigatoken'):  # all ids take memory
        return None
    with contextlib.suppress(Exception):  # it documents no exceptions
        import gigatoken
        tokenizer = gigatoken.Tokenizer.from_json(tokenizer_json(enc))
        special = {id: enc.token_bytes[id] for id in enc.special.values()}  # maybe spelt otherwise
        same_bytes = {**tokenizer.vocab, **special} == enc.token_bytes
        if same_bytes and tokenizer.encode(SELF_CHECK).tolist() == enc.encode(SELF_CHECK):
            return tokenizer
    print('warning: gigatoken does not reproduce this vocabulary; encoding is slower', file=sys.stderr)
    return None


def tokenizer_json(enc):  # -> str, as gigatoken reads it
    splitter = {'type': 'ByteLevel', 'add_prefix_space': False, 'use_regex': True}
    # Without added_tokens, <|endoftext|> is text like any other.
    model = {'type': 'BPE', 'vocab': enc.encoder, 'merges': list(enc.bpe_ranks)}
    return json.dumps({'pre_tokenizer': splitter, 'model': model})


def is_known(text):  # to this Python; gigatoken and regex may differ on newer ones
    if text.isascii():
        return True
    codes = np.frombuffer(text.encode('utf-32-le'), '<u4')
    return known_codes().take(codes[codes > 127], mode='clip').all()


@functools.cache
def known_codes():  # -> bool [n]; the last, False, for all above Unicode 15.1
    return np.array([unicodedata.category(chr(code)) != 'Cn' for code in range(0x323B0)] + [False])
