"""Files → chunks of token ids.

A chunk is a one-dimensional array of token ids: documents, each followed by the id of <|endoftext|>, or an array of a
.npz as it is. Chunks are as compact as the vocabulary allows (uint16 up to 65,536 ids, else int32), and what stands
undeflated in a .npz is mapped into memory, so that data sets larger than memory can be trained on.

    chunks = load_dataset(enc, 'corpus/')
    Sampler(chunks, seed=1).sample(1024)    # int32 [1024]

`iter_chunks` with npz's `write_npz` does the same from file to file, in memory that does not grow with either; and
inside `with worker_processes(…) as encode_groups`, in several processes. npz.py reads and writes the files of
chunks, windows.py draws from them.
"""
import codecs
import collections
import concurrent.futures
import contextlib
import functools
import glob
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tqdm import tqdm

import paths
from encoder import get_encoder, separate_texts
from errors import InputError, require
from npz import npz_arrays, token_dtype, write_npz
from windows import Sampler

READ_BYTES = 1 << 18
GROUP_CHARACTERS, GROUP_ITEMS = 1 << 20, 1 << 12  # encoded at a time: some 25 ms, and not too many tiny files
GROUPS_AHEAD = 3  # in flight for each process, so that none waits while the next group is read
FINGERPRINTED = 64  # windows


def load_dataset(enc, path: str, combine: int = 50000, encoding: str = 'utf-8') -> list[np.ndarray]:  # 1-D, integers
    """All chunks of a text file, a .npz, a directory (with what is below it), a glob (`**` for any depth), or several.

    Several are joined by commas, as in 'a.npz,b/*.txt'. Of a directory, what is hidden (.git) is left out. Documents
    are gathered into one chunk until it has at least `combine` characters. Raises InputError if nothing matches the
    path, a text is not in the encoding, or a .npz holds anything but one-dimensional integer arrays.
    """
    return [joined(list(chunk)) for chunk in iter_chunks(enc, find_files(path), combine, encoding or 'utf-8')]


def encoded(enc, sources: list[str], directory: str, combine: int = 50000,
            encoding: str = 'utf-8') -> list[str]:
    """Where the chunks of each source can be mapped from: the source itself where it means .npz files, else a
    file in the directory.

    It is encoded if it is not there, under a name that changes with the text files, their times and the vocabulary.
    Files of other sources, which earlier calls have left in the directory, are removed.
    """
    targets = [encoded_source(enc, source, directory, combine, encoding) for source in sources]
    used = {os.path.realpath(name) for target in targets for name in find_files(target)}
    for path in glob.glob(f'{glob.escape(directory)}/dataset-*'):
        ours = re.fullmatch(r'dataset-[0-9a-f]{16}\.npz', os.path.basename(path))
        if ours and os.path.realpath(path) not in used:
            with contextlib.suppress(OSError):
                os.unlink(path)
    return targets


def encoded_source(enc, path, directory, combine, encoding):  # -> path
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
