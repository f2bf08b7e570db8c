"""Encoded data: a .npz (a zip of .npy files) of 1-D arrays of token ids, maybe larger than memory."""
import contextlib
import itertools
import mmap
import os
import re
import shutil
import sys
import tempfile
import zipfile
import zlib

import numpy as np

from errors import InputError, require
from storage import paths

PROMPT = 1 << 30  # added to an id that is not learned; such arrays are int32
STEP = 1 << 18  # tokens or bytes
SPOOL_BYTES = 1 << 26  # of a chunk in memory; more in a temporary file
CHECKED_BYTES = 1 << 30  # takes a second or so
# Of a 1-D .npy. NumPy's reader takes four times as long.
HEADER = re.compile(rb"\x93NUMPY\x01\0..\{'descr': '([<>|][iu][1248])', 'fortran_order': False, "
                    rb"'shape': \((\d{1,18}),\), \} *\n", re.DOTALL)


def token_dtype(n_vocab) -> np.dtype:  # of ids in a file
    return np.dtype(np.uint16 if n_vocab <= 1 << 16 else np.int32)


def vocabulary_of(path) -> str | None:  # its fingerprint, if a .npz has one
    with paths.open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 64))
        comment = re.search(rb'vocabulary (\w+)$', file.read())
    return comment and comment[1].decode()


def npz_arrays(path):
    """Yields the arrays of a .npz, mapped, or read as uint16 or int32. Raises InputError unless they are 1-D,
    of ids from 0 on, and whole by their checksums (CHECKED_BYTES of mapped arrays)."""
    with paths.open_regular(path) as file:
        place, unchecked = path, CHECKED_BYTES
        try:
            archive = zipfile.ZipFile(file)
            # One map: a process may have some 65,000. No np.memmap: its views take long.
            data = np.memmap(file, np.uint8, 'r').view(np.ndarray)
            claimed = sum(info.file_size for info in archive.infolist())
            require(claimed <= max(1 << 26, 100 * len(data)),
                    f'claims to hold {claimed:,} bytes, more than 100 times its size')
            for number, info in enumerate(archive.infolist()):
                place = f'{path}, array {info.filename.removesuffix(".npy")[:80]!r}'
                require(not info.comment, 'has a comment, which may hide arrays')
                array = mapped_array(data, info, info.file_size <= unchecked)
                yield read_array(archive, info) if array is None else array
                unchecked -= info.file_size
                if number % 100 == 0 or info.file_size > STEP:
                    release([data])
        except Exception as error:  # zipfile documents none
            reason = ' '.join(str(error).split())[:300] or type(error).__name__
            raise InputError(f'{place}: {reason}; make it anew with encode.py') from None


def mapped_array(data, info, is_checked):  # uint8 [file size], ZipInfo, bool -> 1-D view
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    start = info.header_offset + 30  # the header ends with lengths of name and extra field
    n_name, n_extra = data[start - 4:start].view('<u2').tolist()
    name = data[start:start + n_name].tobytes().decode('utf-8' if info.flag_bits & 0x800 else 'cp437')
    require(name == info.orig_filename, 'has two names that differ')
    require(not info.flag_bits & 1, 'is encrypted')
    start += n_name + n_extra
    member = data[start:start + info.file_size]
    require(len(member) == info.file_size == info.compress_size, 'is cut short')
    require(not is_checked or zlib.crc32(member) == info.CRC, 'is damaged: its checksum is another')
    if not (match := HEADER.match(member[:256].tobytes())):  # not as NumPy writes
        return None
    array = member[match.end():].view(match[1].decode())
    require(len(array) == int(match[2]), f'holds {len(array)} ids, not those of its header')
    low = array.min(initial=0) if is_checked and array.dtype.kind == 'i' else 0
    require(low == 0, f'holds the negative id {low}')
    return array


def read_array(archive, info):  # ZipFile, ZipInfo -> 1-D array, uint16 or int32
    require(info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), 'is compressed as by no NumPy')
    with archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)  # in parts
        require(not file.read(1), 'is longer than its header says')
    require(array.ndim == 1 and array.dtype.kind in 'iu', f'holds {array.dtype} of shape {array.shape}')
    low, high = array.min(initial=0), array.max(initial=0)
    require(low == 0 and high < 2**31, f'holds ids from {low} to {high}')
    return array.astype(token_dtype(int(high) + 1))


def release(chunks):  # frees the memory of mapped chunks, which stay usable
    owners = set()
    for owner in chunks:
        while isinstance(owner, np.ndarray):
            owner = owner.base
        owners.add(owner)
    for owner in owners:
        if sys.platform != 'win32' and isinstance(owner, mmap.mmap):
            with contextlib.suppress(OSError):
                owner.madvise(mmap.MADV_DONTNEED)


def write_npz(path, chunks, n_vocab, compress=False, vocabulary=None):
    """Writes chunks (1-D arrays, or iterators over parts of one); returns numbers of tokens and chunks.
    vocabulary: its fingerprint. Raises InputError for ids from n_vocab on."""
    lengths = []
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with paths.output(path, 'wb') as file, zipfile.ZipFile(file, 'w', method) as archive:
        archive.comment = f'vocabulary {vocabulary}'.encode() if vocabulary else b''
        for chunk in chunks:
            parts = iter([chunk] if isinstance(chunk, np.ndarray) else chunk)
            first = next(parts)
            with_prompts = has_prompts(first)
            dtype = first.dtype if with_prompts else token_dtype(n_vocab)
            with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=os.path.dirname(path) or '.') as spool:
                length = spool_tokens(spool, itertools.chain([first], parts), dtype, n_vocab, with_prompts)
                with archive.open(f'arr_{len(lengths)}.npy', 'w', force_zip64=True) as member:  # undated
                    header = {'descr': dtype.str, 'fortran_order': False, 'shape': (length,)}
                    np.lib.format.write_array_header_1_0(member, header)
                    spool.seek(0)
                    shutil.copyfileobj(spool, member, STEP)
            lengths.append(length)
    return sum(lengths), len(lengths)


def ids_of(array):  # without PROMPT
    return array & (PROMPT - 1) if array.dtype.itemsize > 2 else array


def has_prompts(part):  # part: the first of a chunk; one with prompts is int32, and may be empty
    return part.dtype == np.int32 and (not len(part) or any(
        part[start:start + STEP].max() >= PROMPT for start in range(0, len(part), STEP)))


def spool_tokens(spool, parts, dtype, n_vocab, with_prompts):  # -> number of tokens
    for part in parts:
        for start in range(0, len(part), STEP):
            tokens = part[start:start + STEP]
            ids = ids_of(tokens) if with_prompts else tokens
            bad = tokens[(tokens < 0) | (ids >= n_vocab)]
            require(not len(bad), f'the data has token id {bad[:1].tolist()}, expected 0 to {n_vocab - 1}')
            spool.write(np.ascontiguousarray(tokens, dtype))
            release([tokens])
    return spool.tell() // dtype.itemsize
