#!/usr/bin/env python3
"""Speed of encoding with GPT-2's vocabulary, beside gigatoken, which encodes for us; ids must be equal.

In memory: bulk_encoding, twice with one tokenizer, and Encoder.encode, of the standard library's modules
(code) and of their docstrings and the texts of Python's help() (prose). As a whole: encode.py, from its start
to its end, on what code and text this Python's libraries have; the peer is the least program that does so.

    ./benchmarks/encoding_speed.py
    ./benchmarks/encoding_speed.py --prose book.txt
"""
import glob
import os
import statistics
import sys
import tempfile

import measure  # before the project's own: it makes their import possible

from command_line import cli

import encoders
import numpy as np
import prose_and_code
import table

from storage import paths

DEVELOPERS = (os.path.join(measure.ROOT, '..', 'shared'), 'vocab')
LEAST = 0.9  # of gigatoken's speed


def encoding(model_name: str = '124M', models_dir: str = 'models', prose: str | None = None, rounds: int = 5,
             megabytes: int = 150):
    """Prints a table of megabytes (10⁶ bytes of UTF-8) a second.

    Args:
        model_name: a model with GPT-2's vocabulary.
        models_dir: the folder of the models.
        prose: a text file to encode as prose; None for the docstrings and help texts of the standard library.
        rounds: how often each is measured, in turn; encode.py at most 3 times.
        megabytes: the size of the corpus for encode.py; 0 to leave that out.
    """
    table.show(lambda: rows(model_name, models_dir, prose, rounds, megabytes))


def rows(model_name='124M', models_dir='models', prose=None, rounds=5, megabytes=150):
    places = [(os.path.abspath(paths.expand(models_dir)), model_name), DEVELOPERS]
    place = next((place for place in places if os.path.exists(os.path.join(*place, 'vocab.bpe'))), None)
    if not place:
        note = (f'Encoding was left out: {models_dir}/{model_name} has no vocabulary of GPT-2; '
                'fetch it with ./download_model.py 124M')
        yield table.Row('encoding', None, None, 'MB/s', note=note)
        return
    with tempfile.TemporaryDirectory(prefix='benchmark-') as directory:
        prose = prose or prose_and_code.write_help(os.path.join(directory, 'help.txt'))
        for name, files in (('code', prose_and_code.modules()), ('prose', [prose])):
            yield from in_memory(name, files, place, rounds)
        if megabytes:
            yield from as_a_whole(directory, place, min(rounds, 3), megabytes)


def in_memory(name, files, place, rounds):
    arguments = {'files': files, 'models_dir': place[0], 'model_name': place[1]}
    with measure.children((encoders.ours, arguments), (encoders.peer, arguments)) as processes:
        results = measure.in_turn(processes, rounds)
    encoders.check_equal(name, [ids for result in results for _, ids in result])
    size = sum(map(os.path.getsize, files)) / 1e6

    def speed(side, i):
        return size / statistics.median(result[side][0][i] for result in results)
    for i, words in enumerate(('bulk_encoding', 'bulk_encoding, the same again')):
        yield table.Row(f'{words}, {size:.1f} MB of {name} as one text', speed(0, i), speed(1, i), 'MB/s',
                        least=LEAST)
    yield table.Row(f'Encoder.encode, the same {name}', speed(0, 2), speed(1, 0), 'MB/s')
    print(f'encoded {name}', file=sys.stderr)


def as_a_whole(directory, place, rounds, megabytes):
    corpus, out, vocabulary = (os.path.join(directory, name)
                               for name in ('corpus', 'out.npz', 'vocabulary.json'))
    size = prose_and_code.write_large(corpus, megabytes * 10**6) / 1e6
    with open(vocabulary, 'w', encoding='utf-8') as file:
        file.write(encoders.peer_vocabulary(*place))
    flags = ['--models_dir', place[0], '--model_name', place[1]]
    for workers, words in ((1, 'one core'), (0, 'all cores')):
        runs, ids = [], []
        for _ in range(rounds):
            own = measure.run_script('encode.py', corpus, out, *flags, '--workers', str(workers))
            ids.append(npz_digest(out))
            peer = measure.run_script('-c', encoders.PEER, vocabulary, str(not workers), out,
                                      *sorted(glob.glob(f'{corpus}/*')))
            ids.append(npz_digest(out))
            runs.append((own, peer))
        encoders.check_equal('encode.py', ids)
        (seconds, peaks), (peer_seconds, peer_peaks) = (zip(*side, strict=True)
                                                        for side in zip(*runs, strict=True))
        work = f'encode.py, {size:.0f} MB, {words}'
        yield table.Row(work, *(size / statistics.median(times) for times in (seconds, peer_seconds)), 'MB/s',
                        least=LEAST)
        yield table.Row(f'{work}: peak memory', *(max(filter(None, values), default=None)
                                                  for values in (peaks, peer_peaks)), 'GB', most=1)


def npz_digest(path):
    """Of all ids but those that end a text, which the peer does not write."""
    with np.load(path) as chunks:
        return encoders.digest(ids[ids != encoders.END] for ids in (chunks[name] for name in chunks.files))


if __name__ == '__main__':
    cli.run(encoding)
