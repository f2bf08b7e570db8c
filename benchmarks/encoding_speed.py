#!/usr/bin/env python3
"""Speed of encoding with GPT-2's vocabulary, beside tiktoken's encode_ordinary in one thread; ids must be
equal.

In memory: bulk_encoding, twice with one tokenizer, and Encoder.encode, of the standard library's modules
(code) and of
their docstrings and the texts of Python's help() (prose). As a whole: encode.py, from its start to its end,
on
what code and text this Python's libraries have; the peer reads and encodes the same files, its start is not
counted.

    ./benchmarks/encoding_speed.py
    ./benchmarks/encoding_speed.py --prose book.txt
"""
import glob
import os
import statistics
import sys
import tempfile

from command_line import cli

import encoders
import measure  # before the project's own: it makes their import possible
import numpy as np
import prose_and_code
import table

from storage import paths

DEVELOPERS = (os.path.join(measure.ROOT, '..', 'shared'), 'vocab')

LEAST = {'prose': 1.2, 'code': 1.5, 'all cores': 2}  # times the peer's speed, which is that of one thread


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
        yield table.Row(
            'encoding',
            None,
            None,
            'MB/s',
            note="Encoding was left out: it needs GPT-2's vocabulary, "
            f'which is not in {models_dir}/{model_name}; fetch it with ./download_model.py 124M',
        )
        return
    vocabulary = {'models_dir': place[0], 'model_name': place[1]}
    with tempfile.TemporaryDirectory(prefix='benchmark-') as directory:
        prose = prose or prose_and_code.write_help(os.path.join(directory, 'help.txt'))
        for name, files in (('code', prose_and_code.modules()), ('prose', [prose])):
            yield from in_memory(name, {'files': files, **vocabulary}, rounds)
        if megabytes:
            yield from as_a_whole(directory, vocabulary, min(rounds, 3), megabytes)


def in_memory(name, arguments, rounds):
    functions = [encoders.ours, encoders.peer] if table.installed('tiktoken') else [encoders.ours]
    with measure.children(*((function, arguments) for function in functions)) as processes:
        results = measure.in_turn(processes, rounds)
    encoders.check_equal(name, [ids for result in results for _, ids in result])
    size = sum(map(os.path.getsize, arguments['files'])) / 1e6
    peer_speed = (
        size / statistics.median(result[1][0][0] for result in results) if len(functions) > 1 else None
    )
    for i, words in enumerate(('bulk_encoding', 'bulk_encoding, the same again', 'Encoder.encode')):
        speed = size / statistics.median(result[0][0][i] for result in results)
        yield table.Row(f'{words}, {size:.1f} MB of {name} as one text', speed, peer_speed, 'MB/s',
                        least=LEAST[name] if i < 2 else None)
    print(f'encoded {name}', file=sys.stderr)


def as_a_whole(directory, vocabulary, rounds, megabytes):
    corpus, out = os.path.join(directory, 'corpus'), os.path.join(directory, 'corpus.npz')
    size = prose_and_code.write_large(corpus, megabytes * 10**6) / 1e6
    arguments = {'files': sorted(glob.glob(f'{corpus}/*')), **vocabulary}
    flags = [word for name, value in vocabulary.items() for word in (f'--{name}', value)]
    runs, ids = {1: [], 0: [], 'peer': []}, []  # of each the seconds and the GB, of all the ids
    with measure.children(
        *([(encoders.peer_files, arguments)] if table.installed('tiktoken') else [])
    ) as peers:
        for _ in range(rounds):
            for workers in (1, 0):
                runs[workers].append(
                    measure.run_script('encode.py', corpus, out, *flags, '--workers', str(workers))
                )
                ids.append(npz_digest(out))
            for child in peers:
                (seconds,), digest = child.step()
                runs['peer'].append((seconds, child.peak))
                ids.append(digest)
    encoders.check_equal('encode.py', ids)
    speed = {
        key: size / statistics.median(seconds for seconds, _ in times) for key, times in runs.items() if times
    }
    for workers, words in ((1, 'one process'), (0, 'one a core')):
        work = f'encode.py, {size:.0f} MB, --workers {workers} ({words})'
        peaks = [peak for _, peak in runs[workers] if peak]
        yield table.Row(
            work, speed[workers], speed.get('peer'), 'MB/s', least=None if workers else LEAST['all cores']
        )
        yield table.Row(f'{work}: peak memory', max(peaks, default=None), None, 'GB', most=0.4)


def npz_digest(path):
    with np.load(path) as chunks:
        return encoders.digest(chunks[name] for name in chunks.files)


if __name__ == '__main__':
    cli.run(encoding)
