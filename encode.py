#!/usr/bin/env python3
"""Encodes text as a .npz, so that training need not: ./encode.py corpus/ corpus.npz"""
import dataclasses
import itertools
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), 'src'))

from command_line import cli
from command_line.flags import REQUIRED, TEXTS, DataFlags, flag

import encoder
import load_dataset
from errors import require
from storage import npz, paths


@dataclasses.dataclass(frozen=True)
class EncodeFlags(DataFlags):
    """Encodes text as a .npz of tokens, which train.py reads in place."""
    in_text: str = flag(REQUIRED, TEXTS)
    out_npz: str = flag(REQUIRED, 'the file to write; .npz is added')
    compress: bool = flag(False, 'deflate it; it is then read into memory')
    workers: int = flag(1, 'threads, for the same result; 0 for one a core', 0)


@cli.takes(EncodeFlags)
def encode(flags):
    if flags.workers:
        os.environ['RAYON_NUM_THREADS'] = str(flags.workers)  # for gigatoken
    folder = flags.find_model(flags.model_name)
    enc = encoder.get_encoder(folder)
    files, out = load_dataset.find_files(flags.in_text), paths.expand(flags.out_npz)
    is_file = paths.stream(out) is None
    out += '.npz' if is_file and not load_dataset.is_npz(out) else ''
    is_input = os.path.exists(out) and any(os.path.samefile(out, path) for path in files)
    require(is_file and not os.path.isdir(out) and not is_input,
            f'{out} is a directory, a device or an input; name another file')
    chunks = load_dataset.iter_chunks(enc, files, flags.combine, *flags.text_options(folder))
    first = require(next(chunks, None), f'{flags.in_text} holds no text')
    os.makedirs(os.path.dirname(out) or '.', exist_ok=True)
    chunks = itertools.chain([first], chunks)
    n_tokens, n_chunks = npz.write_npz(out, chunks, enc.n_vocab, flags.compress, enc.fingerprint)
    print(f'{n_tokens} tokens in {n_chunks} chunks, {os.path.getsize(out)} bytes, written to {out}',
          file=sys.stderr)


if __name__ == '__main__':
    cli.run(encode)
