"""Encoded data: a .npz, which is a zip file of .npy files, each a 1-D array of token ids.

Arrays that are not deflated are mapped into memory, and long chunks are written by way of a temporary file:
neither need fit in memory. A damaged or hostile file raises an InputError, and nothing in it is run.

    write_npz('a.npz', [np.array([1, 2]), np.array([3])], n_vocab=50257)    # (3, 2): tokens, arrays
    for array in npz_arrays('a.npz'):    # [1, 2], then [3]; both uint16
        total += array.sum()
        release([array])    # the memory that this took
"""
import contextlib
import io
import mmap
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from errors import InputError, require
from storage import paths

READ_BYTES = 1 << 18
SPOOL_BYTES = 1 << 26  # of a growing chunk in memory; more goes to a temporary file
CHECKED_TOKENS = 1 << 22  # of a file's mapped tokens are searched for negative ids; more would take long
CHECKSUMMED_BYTES = 1 << 30  # of a file's mapped arrays are compared with their checksums: a second or so
CHECKSUM_STEP = 1 << 26  # bytes
# A .npz that claims more than INFLATION times its size is refused; a byte may inflate to 1,032. Code comes to
# 4 times its size as uint16, and 11 as int64, a log of like lines to 38.
INFLATION, ALWAYS_INFLATED = 100, 1 << 26
MAX_HEADER_BYTES = 1 << 14  # of a 1-D array
RELEASED_ARRAYS = 1 << 10  # whose headers are read before their memory is given back: some 64 MB
HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
PLAIN_HEADER = re.compile(rb"\x93NUMPY\x01\0..\{'descr': '([<>|][iu][1248])', 'fortran_order': False, "
                          rb"'shape': \((\d{1,18}),\), \} *\n", re.DOTALL)
LOCAL_HEADER = struct.Struct('<4s2xH18xHH')  # of a member: signature, flags, lengths of name and extra field
ENCRYPTED, UTF8_NAME = 1, 1 << 11  # flags
COMMENT, MAX_COMMENT_BYTES = 'vocabulary ', 64  # at the end of the archive


def token_dtype(n_vocab: int) -> np.dtype:
    """The smallest type of an encoded file that holds the ids 0 to n_vocab - 1."""
    return np.dtype(np.uint16 if n_vocab <= 1 << 16 else np.int32)


def vocabulary_of(path: str) -> str | None:
    """The fingerprint of the vocabulary that a .npz says its ids are of, or None."""
    with paths.open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_COMMENT_BYTES))
        comment = re.search(rf'{COMMENT}(\w+)$'.encode(), file.read())
    return comment and comment[1].decode()


def npz_arrays(path: str) -> Iterator[np.ndarray]:
    """Yields the arrays of a .npz in the order of their numbers, mapped from the file unless deflated.

    Deflated arrays become uint16 or int32. Raises InputError, naming file and array, unless all are 1-D, of
    integers, not negative and whole (by their checksums), and the file claims at most INFLATION times its
    size. Of mapped arrays, only the first CHECKED_TOKENS are searched for negative ids, and only the first
    CHECKSUMMED_BYTES compared with their checksums. Never loads a pickle.
    """
    # Exception is meant: zipfile and NumPy do not document what they raise for damaged or hostile files.
    with paths.open_regular(path) as file:
        try:
            archive = zipfile.ZipFile(file)
            # One map for all arrays: a process may have some 65,000. Views of a np.memmap take long to make.
            content = np.memmap(file, np.uint8, 'r').view(np.ndarray)
        except Exception as error:
            raise InputError(f'{path} is not a .npz, or is cut short ({error}); make it anew with '
                             'encode.py') from None
        claimed = sum(info.file_size for info in archive.infolist())
        require(claimed <= max(ALWAYS_INFLATED, INFLATION * len(content)),
                f'{path} has {len(content):,} bytes and claims to hold {claimed:,}, more than {INFLATION} '
                'times as many, which no text compresses to; if it is meant, write it without --compress')
        unchecked, unsummed = CHECKED_TOKENS, CHECKSUMMED_BYTES
        for number, info in enumerate(sorted(archive.infolist(), key=natural_order)):
            if number % RELEASED_ARRAYS == 0:
                release([content])
            try:
                if info.compress_type == zipfile.ZIP_STORED:
                    array = mapped_array(content, info, info.file_size <= unsummed)
                    unsummed -= info.file_size
                    if array.dtype.kind == 'i' and 0 < len(array) <= unchecked:
                        require(array.min() >= 0, f'holds the negative id {array.min()}')
                        unchecked -= len(array)
                else:
                    array = inflated_array(archive, info)
            except Exception as error:
                reason = ' '.join(str(error).split()) or type(error).__name__
                name = info.filename.removesuffix('.npy')[:80]
                raise InputError(f'{path}, array {name!r}: {reason[:200]}; token arrays are one-dimensional, '
                                 'of integers from 0 on: make them anew with encode.py') from None
            yield array


def natural_order(info):  # ZipInfo -> key by which arr_2 comes before arr_10
    parts = re.split('0*([0-9]+)', info.filename)  # every second part is a number
    return [(len(part), part) if i % 2 else part for i, part in enumerate(parts)]  # int() takes 4,300 digits


def mapped_array(content, info, checksum):  # uint8 [file size], ZipInfo, bool -> 1-D array, a view of content
    start = info.header_offset + LOCAL_HEADER.size
    header = content[info.header_offset:start].tobytes()
    require(len(header) == LOCAL_HEADER.size, 'is cut short')
    signature, flags, name_length, extra_length = LOCAL_HEADER.unpack(header)
    require(signature == b'PK\3\4', 'has no header where the zip file says')
    require(not flags & ENCRYPTED, 'is encrypted')
    name = content[start:start + name_length].tobytes().decode('utf-8' if flags & UTF8_NAME else 'cp437')
    require(name == info.orig_filename, 'its two names differ')  # the order of arrays is that of their names
    start += name_length + extra_length
    member = content[start:start + info.file_size]
    require(len(member) == info.file_size == info.compress_size, 'is cut short')
    require(not checksum or crc32(member) == info.CRC, 'is damaged: its checksum is another')
    header_length = 12 + int.from_bytes(member[8:10].tobytes(), 'little')  # in version 1, 2 less
    header = member[:min(header_length, MAX_HEADER_BYTES)].tobytes()
    size = info.file_size
    dtype, data_start = plain_header(header, size) or read_header(io.BytesIO(header), size)
    return member[data_start:].view(dtype)


def crc32(member):  # uint8 [n], mapped -> int
    value = 0
    for start in range(0, len(member), CHECKSUM_STEP):
        value = zlib.crc32(member[start:start + CHECKSUM_STEP], value)
        if len(member) > CHECKSUM_STEP:
            release([member])
    return value


def plain_header(header, size):  # the first bytes of a .npy of `size` bytes -> dtype, offset of data; or None
    """Reads a header that NumPy writes, in a quarter of its own reader's time: 400,000 arrays in 20 s."""
    match = PLAIN_HEADER.match(header)
    if match and match.end() == 10 + int.from_bytes(header[8:10], 'little'):
        dtype = np.dtype(match[1].decode())
        if match.end() + int(match[2]) * dtype.itemsize == size:
            return dtype, match.end()
    return None


def read_header(file, size):  # a .npy of `size` bytes, open at its start -> dtype, offset of the data
    version = np.lib.format.read_magic(file)
    require(version in HEADER_READERS, f'is a .npy of version {version}')
    shape, _, dtype = HEADER_READERS[version](file)
    require(not dtype.hasobject, 'holds pickled objects, which could run code')
    require(dtype.kind in 'iu', f'holds {dtype}, not integers')
    require(len(shape) == 1, f'has the shape {shape}')
    expected = file.tell() + shape[0] * dtype.itemsize
    require(shape[0] >= 0 and expected == size, f'has not the size of {shape} {dtype}')
    return dtype, file.tell()


def inflated_array(archive, info):  # ZipFile, ZipInfo -> 1-D array, uint16 or int32
    require(info.compress_type == zipfile.ZIP_DEFLATED, 'is compressed otherwise than NumPy does')
    with archive.open(info) as file:
        dtype, data_start = read_header(file, info.file_size)
        array = np.empty((info.file_size - data_start) // dtype.itemsize, dtype)
        unread = array.view(np.uint8)
        # file.read() would inflate all that there is, whatever the file claims, and copy each part.
        while n_read := file.readinto(unread[:READ_BYTES]):
            unread = unread[n_read:]
        require(not len(unread) and not file.read(1), 'is cut short')
    low, high = (array.min(), array.max()) if len(array) else (0, 0)
    require(low >= 0, f'holds the negative id {low}')
    require(high < 2**31, f'holds the id {high}, more than int32 holds')
    return array.astype(token_dtype(int(high) + 1))


def release(chunks: Iterable[np.ndarray]):
    """Gives the memory that reading from mapped chunks took back to the system, if the system takes it.

    The system's cache of files keeps the data while nothing else needs that memory. The chunks are as usable
    as before. Takes about 0.1 s for 400,000 chunks, and 10 ms for 100 MB.
    """
    bases = [chunk.base for chunk in chunks]
    while bases:
        bases = list({id(base): base for base in bases}.values())  # chunks of a file have the same
        for base in bases:
            if isinstance(base, mmap.mmap):
                with contextlib.suppress(OSError, AttributeError):  # not known everywhere
                    base.madvise(mmap.MADV_DONTNEED)
        bases = [base.base for base in bases if isinstance(base, np.ndarray)]


def write_npz(path: str, chunks: Iterable, n_vocab: int, compress: bool = False,
              vocabulary: str | None = None) -> tuple[int, int]:
    """Writes chunks as arr_0, arr_1, … of a .npz, whole or not at all; returns how many tokens and chunks.

    chunks: 1-D arrays, or iterators over the parts of one (as iter_chunks gives them); vocabulary: its
    fingerprint, for vocabulary_of. Takes SPOOL_BYTES of memory at most. Stored, so that it can be mapped into
    memory, unless compress. Raises InputError for an id outside the vocabulary, OSError.
    """
    dtype, n_tokens, n_chunks = token_dtype(n_vocab), 0, 0
    descr = np.lib.format.dtype_to_descr(dtype)
    try:
        with paths.output(path, 'wb') as file, zipfile.ZipFile(file, 'w') as archive:
            archive.comment = f'{COMMENT}{vocabulary}'.encode() if vocabulary else b''
            for chunk in chunks:
                info = zipfile.ZipInfo(f'arr_{n_chunks}.npy')  # its fixed date makes equal data equal files
                info.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
                info.external_attr = 0o644 << 16
                parts = [chunk] if isinstance(chunk, np.ndarray) else chunk
                with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=os.path.dirname(path) or '.') as spool:
                    length = spool_tokens(spool, parts, dtype, n_vocab)
                    with archive.open(info, 'w', force_zip64=True) as member:
                        header = {'descr': descr, 'fortran_order': False, 'shape': (length,)}
                        np.lib.format.write_array_header_1_0(member, header)
                        shutil.copyfileobj(spool, member, READ_BYTES)
                n_tokens, n_chunks = n_tokens + length, n_chunks + 1
    except OSError as error:  # a full disk does not say which
        error.filename = error.filename or path
        raise
    return n_tokens, n_chunks


def spool_tokens(spool, parts, dtype, n_vocab):  # -> number of tokens; the spool stands at its start
    length = 0
    for part in parts:
        for start in range(0, len(part), READ_BYTES):
            tokens = part[start:start + READ_BYTES]
            bad = tokens[(tokens < 0) | (tokens >= n_vocab)]
            require(not len(bad), f'the data has the token id {bad[:1].tolist()}, and the vocabulary the ids '
                    f'0 to {n_vocab - 1}; a .npz in it was made with another vocabulary: make it anew')
            spool.write(np.ascontiguousarray(tokens, dtype))
            release([tokens])
        length += len(part)
    spool.seek(0)
    return length
