#!/usr/bin/env python3
"""Encodes text as a .npz of tokens, so that training need not do it at every start.

    ./encode.py corpus/ corpus.npz
    ./train.py --dataset corpus.npz

Memory does not grow with the corpus. Needs no TensorFlow.
"""
import itertools
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'src'))

from command_line import cli  # before what may not be installed

# isort: split
import encoder
import load_dataset
from errors import require
from storage import paths
from storage.npz import write_npz


def encode(in_text: str, out_npz: str, model_name: str = '124M', models_dir: str = 'models',
           combine: int = 50000, encoding: str = 'utf-8', compress: bool = False, workers: int = 1,
           special_tokens: bool = True, checkpoint_dir: str = 'checkpoint'):
    """Encodes text files as a .npz of tokens, which train.py reads in place.

    Args:
        in_text: a text file, a .npz, a directory (with all below it that is not hidden), a quoted glob (**
            for any depth), or several of these with commas between
        out_npz: the file to write; .npz is added where it is missing
        model_name: the model or run whose vocabulary to use: its name, or its path, with a / in it
        models_dir: the folder of the models
        combine: gather files into one chunk until it has this many characters
        encoding: how the text files are encoded
        compress: deflate the result: smaller, but it must then be read whole into memory
        workers: how many threads encode; 0 for one a core. The result is the same
        special_tokens: in text files, <|endoftext|> separates documents, and other special tokens of the
            model are themselves; false: they are text like any other
        checkpoint_dir: the folder of the runs
    """
    require(workers >= 0, f'--workers must be 0 (one a core) or more, not {workers}')
    if workers > 1:
        os.environ['RAYON_NUM_THREADS'] = str(workers)  # gigatoken reads it before it encodes
    enc = encoder.get_encoder(paths.find_model(model_name, models_dir, checkpoint_dir))
    files = load_dataset.find_files(in_text)
    out = paths.expand(out_npz)
    require(paths.stream(out) is None, f'{out} is a pipe or a device; name a file to write')
    out += '' if out.lower().endswith('.npz') else '.npz'
    require(not os.path.isdir(out), f'{out} is a directory; name a file to write')
    if os.path.exists(out):
        require(not any(os.path.samefile(out, name) for name in files),
                f'{out} is among the files to be encoded; name another output')
    chunks = load_dataset.iter_chunks(enc, files, combine, encoding, special_tokens=special_tokens,
                                      parallel=workers != 1)
    first = next(chunks, None)
    require(first is not None, f'{in_text} holds no text; nothing was written')
    os.makedirs(os.path.dirname(out) or '.', exist_ok=True)
    chunks = itertools.chain([first], chunks)
    n_tokens, n_chunks = write_npz(out, chunks, len(enc), compress, enc.fingerprint)
    size = os.path.getsize(out)
    print(f'{n_tokens} tokens in {n_chunks} chunks, {size} bytes, written to {out}', file=sys.stderr)


if __name__ == '__main__':
    cli.run(encode)
