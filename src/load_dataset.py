"""Files → chunks of token ids → training windows.

A chunk is a one-dimensional array of token ids: documents, each followed by the id of <|endoftext|>, or an array of a
.npz as it is. Chunks are as compact as the vocabulary allows (uint16 up to 65,536 ids, else int32), and what stands
undeflated in a .npz is mapped into memory, so that data sets larger than memory can be trained on.

    chunks = load_dataset(enc, 'corpus/')
    training, validation = hold_out(chunks, 0.1)
    Sampler(training, seed=1).sample(1024)    # int32 [1024]

`iter_chunks` with `write_npz` does the same from file to file, in memory that does not grow with either; and inside
`with worker_processes(…) as encode_groups`, in several processes.
"""
import bisect
import codecs
import collections
import concurrent.futures
import contextlib
import functools
import glob
import hashlib
import io
import itertools
import json
import math
import mmap
import multiprocessing
import os
import re
import secrets
import shutil
import signal
import struct
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tqdm import tqdm

import paths
from encoder import get_encoder, separate_texts
from errors import InputError, require

PADDING = -1  # fills a window longer than its chunk; the loss leaves it out
READ_BYTES = 1 << 18
GROUP_CHARACTERS, GROUP_ITEMS = 1 << 20, 1 << 12  # encoded at a time: some 25 ms, and not too many tiny files
GROUPS_AHEAD = 3  # in flight for each process, so that none waits while the next group is read
SPOOL_BYTES = 1 << 26  # of a growing chunk kept in memory; what is more goes to a temporary file
CHECKED_TOKENS = 1 << 22  # this many of a file's mapped tokens are searched for negative ids; more would take long
CHECKSUMMED_BYTES = 1 << 30  # of a file's mapped arrays are compared with its checksums, which takes a second or so
CHECKSUMMED_TOGETHER = 1 << 26
# What is more than so many times the size of its .npz, and so many bytes, is refused: a byte may inflate to 1,032. Code
# comes to 4 times its size as uint16, and 11 as int64, a log of like lines to 38.
INFLATION, INFLATED_FREELY = 100, 1 << 26
HEADER_BYTES = 1 << 14  # more than any header of a one-dimensional array
RELEASED_ARRAYS = 1 << 10  # whose headers are read before the memory that this takes is given back: some 64 MB
HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
PLAIN_HEADER = re.compile(rb"\x93NUMPY\x01\0..\{'descr': '([<>|][iu][1248])', 'fortran_order': False, "
                          rb"'shape': \((\d{1,18}),\), \} *\n", re.DOTALL)
LOCAL_HEADER = struct.Struct('<4s2xH18xHH')  # of a zip member: signature, flags, lengths of name and extra field
UTF8_NAME = 1 << 11  # among those flags
ROUNDS, MASK = 6, (1 << 64) - 1
FINGERPRINTED = 64  # windows


def load_dataset(enc, path: str, combine: int = 50000, encoding: str = 'utf-8') -> list[np.ndarray]:  # 1-D, integers
    """All chunks of a text file, a .npz, a directory (with what is below it), a glob (`**` for any depth), or several.

    Several are joined by commas, as in 'a.npz,b/*.txt'. Of a directory, what is hidden (.git) is left out. Documents
    are gathered into one chunk until it has at least `combine` characters. Raises InputError if nothing matches the
    path, a text is not in the encoding, or a .npz holds anything but one-dimensional integer arrays.
    """
    return [joined(list(chunk)) for chunk in iter_chunks(enc, find_files(path), combine, encoding or 'utf-8')]


def encoded(enc, path: str, directory: str, combine: int = 50000, encoding: str = 'utf-8') -> str:
    """Where the same chunks can be mapped from: the path itself where it means .npz files, else one in the directory.

    It is encoded if it is not there, under a name that changes with the text files, their times and the vocabulary.
    """
    files = find_files(path)
    if all(name.lower().endswith('.npz') for name in files):
        return path
    described = [[os.path.abspath(name), os.path.getsize(name), os.stat(name).st_mtime_ns] for name in files]
    made_from = json.dumps([described, combine, encoding, fingerprint(enc)])
    target = os.path.join(directory, f'dataset-{hashlib.blake2b(made_from.encode(), digest_size=8).hexdigest()}.npz')
    if not os.path.exists(target):
        os.makedirs(directory, exist_ok=True)
        write_npz(target, iter_chunks(enc, files, combine, encoding or 'utf-8'), len(enc))
    return target


def fingerprint(enc, *data: list[np.ndarray], length: int = 1024) -> str:
    """16 digits, others for another vocabulary, and in all likelihood for other data (each a list of chunks).

    Of the data count the sizes, and some windows of this length.
    """
    digest = hashlib.blake2b(json.dumps(enc.encoder, sort_keys=True).encode(), digest_size=8)
    for chunks in data:
        digest.update(f'{[len(chunk) for chunk in chunks]}'.encode())
        sampler = Sampler(chunks, seed=0)
        for _ in range(FINGERPRINTED):
            digest.update(sampler.sample(length).tobytes())
    return digest.hexdigest()


def joined(parts):  # a lone part stays itself: it may be a memory map
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def token_dtype(n_vocab: int) -> np.dtype:
    """The smallest type of an encoded file that holds the ids 0 to n_vocab - 1."""
    return np.dtype(np.uint16 if n_vocab <= 1 << 16 else np.int32)


def find_files(path: str) -> list[str]:
    """The files that a path means; InputError if there are none.

    Several paths may be joined by commas: what each means, sorted, in the order given. A name with a comma in it is
    found as long as it stands alone.
    """
    alone = paths.expand(path)
    if ',' not in path or os.path.exists(alone) or glob.glob(alone, recursive=True):
        return files_of(alone)
    require(all(path.split(',')), f'{path} has nothing before, between or after its commas; name a path there')
    return [name for part in path.split(',') for name in files_of(paths.expand(part))]


def files_of(path):  # -> sorted list of paths
    if os.path.isdir(path):
        found = [os.path.join(folder, name) for folder, names in visible(path) for name in names]
        found = [name for name in found if os.path.isfile(name) or not os.path.exists(name)]  # no pipes or devices
        require(found, f'the directory {path} holds no files; name one that does, or a file')
        return sorted(found)
    if os.path.exists(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    require(found, f'nothing matches the path {path}; name a file, a directory or a glob (quoted, so that the shell '
            'leaves it alone)')
    files = [name for name in found if not os.path.isdir(name)]
    require(files, f'{path} matches only directories; name one of them, or add /** for the files in them')
    return files


def visible(path):
    """Yields the folders from a path on, and the names of their files; without what is hidden, such as .git."""
    for folder, folders, names in os.walk(path, onerror=raise_):
        folders[:] = [name for name in folders if not name.startswith('.')]
        yield folder, [name for name in names if not name.startswith('.')]


def raise_(error):
    raise error


# Chunks


def iter_chunks(enc, files: list[str], combine: int = 50000, encoding: str = 'utf-8', progress: bool = True,
                encode_groups: Callable | None = None) -> Iterator[Iterator[np.ndarray]]:
    """Yields the chunks of the files, each an iterator over its parts (1-D arrays, none empty).

    Exhaust each before the next. Memory is bounded by the encoder's longest piece, not by a file or a chunk; only the
    arrays of a deflated .npz are read whole, one at a time.
    progress: whether to show, on a terminal's stderr, how many of the files' bytes are done. encode_groups: what
    worker_processes gave, to encode in its processes. The parts, joined, and the errors are the same in any case.
    """
    text_decoder(encoding)  # an unknown one is told before any work
    encode_groups = encode_groups or functools.partial(in_order, lambda texts: lambda: encode_texts(enc, texts), 1)
    total = sum(map(os.path.getsize, files))
    with tqdm(total=total, unit='B', unit_scale=True, desc='encoding', disable=None if progress else True) as bar:
        items = iter_items(enc, files, combine, encoding, bar.update)
        parts = iter_parts(encode_groups(in_groups(items)), token_dtype(len(enc)))
        for part in parts:
            if part is not None:
                yield itertools.chain([part], itertools.takewhile(lambda each: each is not None, parts))


def iter_items(enc, files, combine, encoding, advance):
    """Yields what the files hold, in order: texts that can be encoded apart, arrays of tokens, the id of <|endoftext|>
    after each document, and None wherever a chunk ends.
    """
    gathered = 0  # characters in the chunk so far
    for path in files:
        if path.lower().endswith('.npz'):
            yield None
            gathered = 0
            for array in npz_arrays(path):
                if len(array):
                    yield array
                    yield None
            advance(os.path.getsize(path))
        else:
            text = Counted(read_text(path, encoding, advance))
            yield from document_items(enc, path, text)
            gathered += text.count
            if gathered >= combine:
                yield None
                gathered = 0


def document_items(enc, path, text):
    """Yields a document's text, cut where that changes no id, and then, unless it is empty, the id of <|endoftext|>."""
    yield from separate_document(path, text)
    if text.count and enc.eot is not None:
        yield enc.eot


def separate_document(path: str, texts: Iterable[str]) -> Iterator[str]:
    """separate_texts of a file's text, as read_text gives it; what either raises names the file."""
    try:
        yield from separate_texts(texts)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None


def in_groups(items):  # -> lists of items, worth sending to another process; an array ends its list
    group, characters = [], 0
    for item in items:
        group.append(item)
        characters += len(item) if isinstance(item, str) else 0
        if characters >= GROUP_CHARACTERS or len(group) >= GROUP_ITEMS or isinstance(item, np.ndarray):
            yield group
            group, characters = [], 0
    if group:
        yield group


def in_order(start, ahead, groups):
    """Yields (group, ids of each text in it) for each group, while up to `ahead` groups are being encoded.

    start: begins to encode a list of texts; returns a function that waits for their ids. An error in the groups is
    raised after all groups before it, just as if nothing were read ahead. Nothing is read past an array until that is
    used: those of a deflated .npz can be large.
    """
    groups, waiting, error = iter(groups), collections.deque(), None
    while True:
        while groups and len(waiting) < ahead and not (waiting and isinstance(waiting[-1][0][-1], np.ndarray)):
            try:
                group = next(groups)
            except StopIteration:
                groups = None
            except Exception as raised:
                groups, error = None, raised
            else:
                texts = [item for item in group if isinstance(item, str)]
                waiting.append((group, start(texts) if texts else list))
        if not waiting:
            break
        group, wait = waiting.popleft()
        yield group, wait()
    if error:
        raise error


def iter_parts(encoded, dtype):
    """Yields the items of groups, in place of texts and ids arrays: what is left is arrays, and None for chunk ends."""
    for group, ids in encoded:
        ids = iter(ids)
        for item in group:
            if isinstance(item, str):
                yield next(ids)
            else:
                yield np.array([item], dtype) if isinstance(item, int) else item


def encode_texts(enc, texts):  # -> list of arrays
    dtype = token_dtype(len(enc))
    return [ids.astype(dtype, copy=False) for ids in enc.encode_each(texts)]


class Counted:
    """An iterable of strings that counts their characters as they go by."""

    def __init__(self, texts: Iterable[str]):
        self.texts, self.count = texts, 0

    def __iter__(self):
        for text in self.texts:
            self.count += len(text)
            yield text


def read_text(path: str, encoding: str, advance: Callable[[int], None] = lambda n_bytes: None) -> Iterator[str]:
    """Yields a file's text in pieces, line ends and byte-order mark as they are.

    advance: called with the number of bytes read, piece by piece. Raises InputError (without the file's name, which
    separate_document adds) where the file is not so encoded.
    """
    decoder = text_decoder(encoding)
    read = 0
    with open(path, 'rb') as file:
        while True:
            data = file.read(READ_BYTES)
            read += len(data)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeError as error:  # what the decoder had kept from before is part of error.object
                at = read - len(error.object) + error.start if isinstance(error, UnicodeDecodeError) else read
                raise InputError(f'not {encoding} at byte {at} ({getattr(error, "reason", error)}); give its right '
                                 'encoding with --encoding, or leave the file out') from None
            if text:
                yield text
            if not data:
                return
            advance(len(data))


def text_decoder(encoding: str) -> codecs.IncrementalDecoder:  # InputError if there is none of that name
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        if isinstance(decoder.decode(b''), str):  # not a codec of bytes to bytes, such as hex
            return decoder
    except (LookupError, TypeError, ValueError):
        pass
    raise InputError(f'--encoding {encoding!r} is not an encoding of text that Python knows; try utf-8 or latin-1')


# Several processes


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@contextlib.contextmanager
def worker_processes(count: int, model_name: str, models_dir: str = 'models') -> Iterator[Callable]:
    """Processes that encode for iter_chunks: `with worker_processes(2, '124M') as encode_groups: …`.

    They start as they are needed, and each reads the vocabulary for itself. They end with the block, at once where it
    ends by an exception, and also if this process is killed. Raises InputError if one of them is. A script that calls
    this must do so below `if __name__ == '__main__'`, as each of them imports it.
    """
    context = multiprocessing.get_context('spawn')  # fork is not safe beside threads, and TensorFlow's are many
    own, processes = threading.local(), []

    def begin():
        # Each thread speaks with one process, by a pipe that nobody else holds: if either is killed, even halfway
        # through a message, the other finds the pipe closed. concurrent.futures' pool of processes would wait for ever.
        if sys.platform != 'win32':  # Ctrl-C is for the main thread: not for these, nor their processes
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        own.pipe, end = context.Pipe()
        own.process = context.Process(target=encode_for, args=(end, model_name, models_dir), daemon=True)
        own.process.start()
        processes.append(own.process)
        end.close()

    def encode(texts):
        try:
            own.pipe.send(texts)
            return own.pipe.recv()
        except (EOFError, OSError):
            own.process.join()
            raise InputError(f'one of the {count} worker processes was killed (status {own.process.exitcode}), most '
                             'likely for want of memory; give fewer --workers') from None

    pool = concurrent.futures.ThreadPoolExecutor(count, initializer=begin)
    try:
        yield functools.partial(in_order, lambda texts: pool.submit(encode, texts).result, GROUPS_AHEAD * count)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()  # either idle, or at work that is of no use any more
        pool.shutdown()


def encode_for(pipe, model_name, models_dir):
    """What a worker process does: encodes each list of texts that comes, until the pipe's other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where begin has not blocked it
    enc = get_encoder(model_name, models_dir)
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(encode_texts(enc, pipe.recv()))


# .npz: a zip file of .npy files


def npz_arrays(path: str) -> Iterator[np.ndarray]:
    """Yields the arrays of a .npz in the order of their numbers, those that are not deflated mapped from the file.

    Deflated ones are narrowed to uint16 or int32. Raises InputError, naming file and array, unless all are
    one-dimensional, of integers, not negative and whole, as their checksums tell, and where the file claims to hold
    more than INFLATION times its size. Of the mapped ones, only the first CHECKED_TOKENS are searched for negative ids,
    and the first CHECKSUMMED_BYTES compared with their checksums. Never loads a pickle.
    """
    # Exception is meant: what zipfile and NumPy raise on damaged or hostile files is not documented, and it is much.
    with open(path, 'rb') as file:
        try:
            archive = zipfile.ZipFile(file)
            content = np.memmap(file, np.uint8, 'r')  # one map for all arrays: a process may have some 65,000
            content = content.view(np.ndarray)  # views of a memmap itself take long to make
        except Exception as error:
            raise InputError(f'{path} is not a .npz, or is cut short ({error}); make it anew with encode.py') from None
        inflated = sum(info.file_size for info in archive.infolist())
        require(inflated <= max(INFLATED_FREELY, INFLATION * len(content)),
                f'{path} has {len(content):,} bytes and claims to hold {inflated:,}, more than {INFLATION} times as '
                'many, which no text compresses to; if it is meant, write it without --compress')
        unchecked, unsummed = CHECKED_TOKENS, CHECKSUMMED_BYTES
        for number, info in enumerate(sorted(archive.infolist(), key=natural_order)):
            if number % RELEASED_ARRAYS == 0:
                release([content])
            try:
                if info.compress_type == zipfile.ZIP_STORED:
                    array = mapped_array(content, info, checksum=info.file_size <= unsummed)
                    unsummed -= info.file_size
                    if array.dtype.kind == 'i' and 0 < len(array) <= unchecked:
                        require(array.min() >= 0, f'holds the negative id {array.min()}')
                        unchecked -= len(array)
                else:
                    array = inflated_array(archive, info)
            except Exception as error:
                reason = ' '.join(str(error).split()) or type(error).__name__
                name = info.filename.removesuffix('.npy')[:80]
                raise InputError(f'{path}, array {name!r}: {reason[:200]}; token arrays are '
                                 'one-dimensional, of integers from 0 on: make them anew with encode.py') from None
            yield array


def natural_order(info):  # arr_2 before arr_10
    parts = re.split('0*([0-9]+)', info.filename)
    # Every other part is a number. Python makes no int of thousands of digits.
    return [(len(part), part) if i % 2 else part for i, part in enumerate(parts)]


def mapped_array(content, info, checksum):  # uint8 [file size], ZipInfo, bool -> 1-D array, a view of the content
    header = content[info.header_offset:info.header_offset + LOCAL_HEADER.size].tobytes()
    require(len(header) == LOCAL_HEADER.size, 'is cut short')
    signature, flags, name_length, extra_length = LOCAL_HEADER.unpack(header)
    require(signature == b'PK\3\4', 'has no header where the zip file says')
    require(not flags & 1, 'is encrypted')
    start = info.header_offset + LOCAL_HEADER.size
    name = content[start:start + name_length].tobytes().decode('utf-8' if flags & UTF8_NAME else 'cp437')
    require(name == info.orig_filename, 'its two names differ')  # their order is that of the arrays
    start += name_length + extra_length
    member = content[start:start + info.file_size]
    require(len(member) == info.file_size == info.compress_size, 'is cut short')
    require(not checksum or crc32(member) == info.CRC, 'is damaged: its checksum is another')
    header_length = 12 + int.from_bytes(member[8:10].tobytes(), 'little')  # 10 in version 1, 12 in version 2
    dtype, data_start = mapped_header(member[:min(header_length, HEADER_BYTES)].tobytes(), info.file_size)
    return member[data_start:].view(dtype)


def crc32(member):  # uint8 [n], mapped
    value = 0
    for start in range(0, len(member), CHECKSUMMED_TOGETHER):
        if start:
            release([member])
        value = zlib.crc32(member[start:start + CHECKSUMMED_TOGETHER], value)
    return value


def mapped_header(start, size):  # the first bytes of a .npy of `size` bytes -> dtype, offset of the data
    plain = PLAIN_HEADER.match(start)
    if plain:  # NumPy's reader, which knows all headers, takes four times as long: 20 s for 400,000 arrays
        dtype, data_start = np.dtype(plain[1].decode()), plain.end()
        header_length = 10 + int.from_bytes(start[8:10], 'little')
        if data_start == header_length and data_start + int(plain[2]) * dtype.itemsize == size:
            return dtype, data_start
    return read_header(io.BytesIO(start), size)


def inflated_array(archive, info):  # ZipFile, ZipInfo -> 1-D array, uint16 or int32
    require(info.compress_type == zipfile.ZIP_DEFLATED, 'is compressed otherwise than NumPy does')
    with archive.open(info) as file:
        dtype, data_start = read_header(file, info.file_size)
        array = np.empty((info.file_size - data_start) // dtype.itemsize, dtype)
        rest = array.view(np.uint8)
        # By file.read() all that there is would be inflated, whatever the file claims; and each part is copied.
        while n_read := file.readinto(rest[:READ_BYTES]):
            rest = rest[n_read:]
        require(not len(rest) and not file.read(1), 'is cut short')
    low, high = (array.min(), array.max()) if len(array) else (0, 0)
    require(low >= 0, f'holds the negative id {low}')
    require(high < 2**31, f'holds the id {high}, more than int32 holds')
    return array.astype(token_dtype(int(high) + 1))


def read_header(file, size):  # a .npy of `size` bytes, open at its start -> dtype, offset of the data
    version = np.lib.format.read_magic(file)
    require(version in HEADER_READERS, f'is a .npy of version {version}')
    shape, _, dtype = HEADER_READERS[version](file)
    require(not dtype.hasobject, 'holds pickled objects, which could run code')
    require(dtype.kind in 'iu', f'holds {dtype}, not integers')
    require(len(shape) == 1, f'has the shape {shape}')
    require(shape[0] >= 0 and file.tell() + shape[0] * dtype.itemsize == size, f'has not the size of {shape} {dtype}')
    return dtype, file.tell()


def release(chunks: Iterable[np.ndarray]):
    """Gives the memory that reading from mapped chunks took back to the system, where the system takes it.

    What was read stays in the system's cache of files as long as nothing else needs that memory, but does not count as
    this process's. The chunks are as usable as before. Takes about 0.1 s for 400,000 chunks, and 10 for 100 MB.
    """
    found = {id(base): base for base in [chunk.base for chunk in chunks]}.values()  # those of a file have the same
    while found:
        for each in found:
            if isinstance(each, mmap.mmap):
                with contextlib.suppress(OSError, AttributeError):  # not known everywhere
                    each.madvise(mmap.MADV_DONTNEED)
        found = [each.base for each in found if isinstance(each, np.ndarray)]


def write_npz(path: str, chunks: Iterable, n_vocab: int, compress: bool = False) -> tuple[int, int]:
    """Writes chunks as arr_0, arr_1, … of a .npz, whole or not at all; returns how many tokens and chunks these were.

    chunks: an iterable whose elements are 1-D arrays, or iterators over the parts of one (as iter_chunks gives them).
    Takes no more than SPOOL_BYTES of memory. Stored unless compress, so that it can be mapped into memory. Raises
    InputError for an id outside the vocabulary, OSError.
    """
    dtype, n_tokens, n_chunks = token_dtype(n_vocab), 0, 0
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    try:
        with paths.replacing(path, 'wb') as file, zipfile.ZipFile(file, 'w') as archive:
            for chunk in chunks:
                info = zipfile.ZipInfo(f'arr_{n_chunks}.npy')  # its fixed date makes equal data equal files
                info.compress_type, info.external_attr = method, 0o644 << 16
                with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=os.path.dirname(path) or '.') as spool:
                    length = spool_tokens(spool, [chunk] if isinstance(chunk, np.ndarray) else chunk, dtype, n_vocab)
                    with archive.open(info, 'w', force_zip64=True) as member:
                        write_header(member, dtype, length)
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
            some = part[start:start + READ_BYTES]
            bad = some[(some < 0) | (some >= n_vocab)]
            require(not len(bad), f'the data has the token id {bad[:1].tolist()}, and the vocabulary the ids 0 to '
                    f'{n_vocab - 1}; a .npz in it was made with another vocabulary: make it anew')
            spool.write(np.ascontiguousarray(some, dtype))
            release([some])
        length += len(part)
    spool.seek(0)
    return length


def write_header(file, dtype, length):
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {'descr': descr, 'fortran_order': False, 'shape': (length,)})


# Training windows


def hold_out(chunks: list[np.ndarray], fraction: float) -> tuple[list, list]:  # training chunks, validation chunks
    """Takes the last `fraction` of all tokens away for validation: whole chunks, and a slice of one. Copies nothing.

    Raises InputError unless at least 2 tokens (one to see, one to predict) are left on each side.
    """
    require(0 < fraction < 1, f'the fraction to hold out must be between 0 and 1, not {fraction}')
    total = sum(map(len, chunks))
    count = round(total * fraction)
    require(count >= 2 and total - count >= 2,
            f'holding out {fraction} of {total} tokens leaves {total - count} to train on and {count} to validate '
            'with; both need at least 2: hold out another fraction, or give more text')
    training, validation = list(chunks), []
    while count:
        chunk = training.pop()
        taken = min(count, len(chunk))
        validation.append(chunk[len(chunk) - taken:])
        if taken < len(chunk):
            training.append(chunk[:len(chunk) - taken])
        count -= taken
    return training, validation[::-1]


class Sampler:
    """Draws windows of consecutive tokens from chunks, every window equally likely, without repeats within an epoch.

    A chunk of n tokens has n - length + 1 windows, or one, filled up with PADDING at its right, where it is shorter;
    a chunk of a single token has none, as there is nothing in it to predict. An epoch is a pseudo-random permutation of
    all windows, computed draw by draw from (seed, epoch): nothing is stored, no chunk is copied, and `position` (the
    number of draws so far) is the whole state. Rank r of `size` takes the draws r, r + size, r + 2 size, …

    Attributes: seed (drawn where None is given), position (may be set), total_size (tokens in all chunks). Raises
    InputError where no chunk has two tokens.
    """

    def __init__(self, chunks: Iterable[np.ndarray], seed: int | None = None, rank: int = 0, size: int = 1):
        require(0 <= rank < size, f'rank {rank} must be from 0 to {size - 1}')
        chunks = [np.asarray(chunk) for chunk in chunks]
        self.chunks = [chunk for chunk in chunks if len(chunk) >= 2]
        self.total_size = sum(map(len, chunks))
        require(self.chunks, f'the data has {self.total_size} tokens in {len(chunks)} chunks, but at least 2 in one '
                'chunk are needed (and for full windows, as many as a window is long); give more text')
        self.seed = secrets.randbits(63) if seed is None else int(seed)
        self.rank, self.size, self.position = rank, size, 0
        self._ends = {}  # length -> for each chunk, the number of windows in it and all before it
        self._keys = {}  # epoch -> key; only the latest

    def sample(self, length: int) -> np.ndarray:  # int32 [length]
        """The next window of `length` tokens."""
        ends = self._window_ends(length)
        epoch, draw = divmod(self.position * self.size + self.rank, ends[-1])
        window = permuted(draw, ends[-1], self._key(epoch))
        i = bisect.bisect_right(ends, window)
        start = window - (ends[i - 1] if i else 0)
        tokens = self.chunks[i][start:start + length]
        if tokens.dtype.itemsize > 2:  # of such arrays, only the first that a file holds have been looked at
            require(0 <= tokens.min() and tokens.max() < 1 << 31, f'the data has ids from {tokens.min()} to '
                    f'{tokens.max()}; make it anew with encode.py')
        tokens = tokens.astype(np.int32)
        if len(tokens) < length:
            tokens = np.append(tokens, np.full(length - len(tokens), PADDING, np.int32))
        self.position += 1
        return tokens

    def _window_ends(self, length):
        if length not in self._ends:
            require(length >= 1, f'a window must have at least 1 token, not {length}')
            lengths = np.array([len(chunk) for chunk in self.chunks], np.int64)
            self._ends[length] = np.cumsum(np.maximum(lengths - length + 1, 1)).tolist()
        return self._ends[length]

    def _key(self, epoch):
        if epoch not in self._keys:
            digest = hashlib.blake2b(f'{self.seed} {epoch}'.encode(), digest_size=8).digest()
            self._keys = {epoch: int.from_bytes(digest, 'little')}
        return self._keys[epoch]


def permuted(index, n, key):  # index and result from 0 to n - 1
    """Where a pseudo-random permutation, one for each key, sends an index.

    A Feistel network over a grid of about n cells, both sides changed in turn by a hash of the other (Black and Rogaway
    2002, section 5), and walked on while it leads to one of the few cells past n.
    """
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    while True:
        row, column = divmod(index, columns)
        for turn in range(0, ROUNDS, 2):
            row = (row + hashed(column, turn, key)) % rows
            column = (column + hashed(row, turn + 1, key)) % columns
        index = row * columns + column
        if index < n:
            return index


def hashed(half, turn, key):  # -> 64 bits; the steps of splitmix64 (Steele et al. 2014, figure 17)
    mixed = (key + 0x9E3779B97F4A7C15 * (half * ROUNDS + turn + 1)) & MASK
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & MASK
    return mixed ^ mixed >> 31
