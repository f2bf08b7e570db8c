"""The functions that encoding_speed.py measures, each in its own process: steps give seconds and a digest."""
import hashlib
import os
import time

import measure  # noqa: F401  before the project's own: it makes their import possible
import numpy as np
import prose_and_code

import encoder
from fast import bulk_encoding


def ours(files, models_dir, model_name):
    texts = [''.join(map(prose_and_code.read, files))]
    while True:
        enc = encoder.get_encoder(model_name, models_dir)
        bulk_encoder = bulk_encoding.BulkEncoder(enc)

        def bulk(text, bulk_encoder=bulk_encoder):
            return bulk_encoder.encode([text])[0]
        results = [timed(encode, texts) for encode in (bulk, bulk, enc.encode)]
        seconds, digests = zip(*results, strict=True)
        check_equal('bulk_encoding and encoder.py', digests)
        yield list(seconds), digests[0]


def peer(files, models_dir, model_name):
    enc, texts = peer_encoding(models_dir, model_name), [''.join(map(prose_and_code.read, files))]
    while True:
        seconds, ids = timed(enc.encode_ordinary, texts)
        yield [seconds], ids


def peer_files(files, models_dir, model_name):
    enc = peer_encoding(models_dir, model_name)

    def encode(path):
        ids = enc.encode_ordinary(prose_and_code.read(path))
        ids.append(enc.eot_token)
        return ids
    while True:
        seconds, ids = timed(encode, files)
        yield [seconds], ids


def peer_encoding(models_dir, model_name):
    os.environ['TIKTOKEN_CACHE_DIR'] = ''  # or it keeps copies of the two files
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str
    ranks = data_gym_to_mergeable_bpe_ranks(*(os.path.join(models_dir, model_name, name)
                                              for name in ('vocab.bpe', 'encoder.json')))
    return tiktoken.Encoding('gpt2', pat_str=r50k_pat_str, mergeable_ranks=ranks,
                             special_tokens={encoder.EOT: len(ranks)})


def timed(encode, texts):  # -> seconds, digest
    seconds, arrays = 0.0, []
    for text in texts:
        start = time.perf_counter()
        ids = encode(text)
        seconds += time.perf_counter() - start
        arrays.append(np.array(ids, np.int32))  # not kept as lists, which take ten times the memory
    return seconds, digest(arrays)


def check_equal(name, digests):
    if len(set(digests)) != 1:
        raise AssertionError(f'{name}: the ids are not equal, so their speed means nothing')


def digest(arrays):  # iterable of lists or arrays of ids -> str
    state = hashlib.sha256()
    for ids in arrays:
        state.update(np.asarray(ids, np.int32).tobytes())
    return state.hexdigest()
