"""The functions that encoding_speed.py measures, each in its own process: steps give seconds and a digest."""
import functools
import hashlib
import os
import time

import measure  # noqa: F401  before the project's own: it makes their import possible

import numpy as np
import prose_and_code

import encoder
from fast import bulk_encoding

END = 50256  # GPT-2's <|endoftext|>
# The least program that does the work of encode.py: python -c PEER vocabulary parallel out files…
PEER = '''
import sys
import awkward, gigatoken, numpy as np
vocabulary, parallel, out, *files = sys.argv[1:]
with open(vocabulary, encoding='utf-8') as file:
    tokenizer = gigatoken.Tokenizer.from_json(file.read())
texts = []
for path in files:
    with open(path, 'rb') as file:
        texts.append(file.read())
batch = tokenizer.encode_batch(texts, parallel=parallel == 'True')
np.savez(out, np.asarray(awkward.flatten(batch)).astype(np.uint16))
'''


def ours(files, models_dir, model_name):
    text = ''.join(map(prose_and_code.read, files))
    while True:
        enc = encoder.get_encoder(os.path.join(models_dir, model_name))
        bulk_encoder = bulk_encoding.BulkEncoder(enc)

        def bulk(text, bulk_encoder=bulk_encoder):
            return bulk_encoder.encode([text])[0]
        results = [timed(encode, text) for encode in (bulk, bulk, enc.encode)]
        seconds, digests = zip(*results, strict=True)
        check_equal('bulk_encoding and encoder.py', digests)
        yield list(seconds), digests[0]


def peer(files, models_dir, model_name):
    import gigatoken
    vocabulary, text = peer_vocabulary(models_dir, model_name), ''.join(map(prose_and_code.read, files))
    while True:
        new_tokenizer = functools.cache(gigatoken.Tokenizer.from_json)  # made at the first call, as ours

        def encode(text, new_tokenizer=new_tokenizer):
            return new_tokenizer(vocabulary).encode(text.encode())
        results = [timed(encode, text) for _ in range(2)]
        yield [seconds for seconds, _ in results], results[0][1]


def peer_vocabulary(models_dir, model_name):
    return bulk_encoding.tokenizer_json(encoder.get_encoder(os.path.join(models_dir, model_name)))


def timed(encode, text):  # -> seconds, digest
    start = time.perf_counter()
    ids = encode(text)
    return time.perf_counter() - start, digest([ids])


def check_equal(name, digests):
    if len(set(digests)) != 1:
        raise AssertionError(f'{name}: the ids are not equal, so their speed means nothing')


def digest(arrays):  # iterable of lists or arrays of ids -> str
    state = hashlib.sha256()
    for ids in arrays:
        state.update(np.asarray(ids, np.int32).tobytes())
    return state.hexdigest()
