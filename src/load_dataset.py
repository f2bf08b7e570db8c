"""Files → chunks of token ids.

A chunk is a one-dimensional array of token ids: documents, each followed by the id of the token that ends a
text, or an array of a .npz as it is. A text file is a document, or several that <|endoftext|> (or what else
ends a text in the vocabulary) separates. Chunks are as compact as the vocabulary allows (uint16 up to 65,536 ids,
else int32), and what stands undeflated in a .npz is mapped into memory, so that data sets larger than memory can
be trained on.

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
import dataclasses
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

from encoder import get_encoder, separate_texts, split_at
from errors import InputError, require
from fast.session import cores  # noqa: F401  for those who encode in several processes
from storage import paths
from storage.npz import npz_arrays, token_dtype, vocabulary_of, write_npz
from training.windows import Sampler

READ_BYTES = 1 << 18
GROUP_CHARACTERS, GROUP_ITEMS = 1 << 20, 1 << 12  # encoded at a time: some 25 ms, and not too many tiny files
GROUPS_AHEAD = 3  # in flight for each process, so that none waits while the next group is read
FINGERPRINTED = 64  # windows


def load_dataset(enc, path: str, combine: int = 50000, encoding: str = 'utf-8', special_tokens: bool = True,
                 progress: bool = True) -> list[np.ndarray]:  # 1-D, integers
    """All chunks of a text file, a .npz, a directory (with what is below it), a glob (`**` for any depth), or several.

    Several are joined by commas, as in 'a.npz,b/*.txt'. Of a directory, what is hidden (.git) is left out. Documents
    are gathered into one chunk until it has at least `combine` characters. special_tokens, progress: see
    iter_chunks. Raises InputError if nothing matches the path, a text is not in the encoding, or a .npz holds
    anything but one-dimensional integer arrays, or ids of another vocabulary.
    """
    chunks = iter_chunks(enc, find_files(path), combine, encoding or 'utf-8', progress,
                         special_tokens=special_tokens)
    return [joined(list(chunk)) for chunk in chunks]


def encode_to_npz(enc, sources: list[str], directory: str, combine: int = 50000, encoding: str = 'utf-8',
            special_tokens: bool = True) -> list[str]:
    """Where the chunks of each source can be mapped from: the source itself where it means .npz files, else a
    file in the directory.

    It is encoded if it is not there, under a name that changes with the text files, their times and the vocabulary.
    Files of other sources, which earlier calls have left in the directory, are removed.
    """
    targets = [encoded_source(enc, source, directory, combine, encoding, special_tokens) for source in sources]
    used = {os.path.realpath(name) for target in targets for name in find_files(target)}
    for path in glob.glob(f'{glob.escape(directory)}/dataset-*'):
        ours = re.fullmatch(r'dataset-[0-9a-f]{16}\.npz', os.path.basename(path))
        if ours and os.path.realpath(path) not in used:
            with contextlib.suppress(OSError):
                os.unlink(path)
    return targets


def encoded_source(enc, path, directory, combine, encoding, special_tokens):  # -> path
    files = find_files(path)
    if all(name.lower().endswith('.npz') for name in files):
        return path
    described = [[os.path.abspath(name), os.path.getsize(name), os.stat(name).st_mtime_ns] for name in files]
    made_from = json.dumps([described, combine, encoding, special_tokens, fingerprint(enc)])
    target = os.path.join(directory, f'dataset-{hashlib.blake2b(made_from.encode(), digest_size=8).hexdigest()}.npz')
    if not os.path.exists(target):
        os.makedirs(directory, exist_ok=True)
        chunks = iter_chunks(enc, files, combine, encoding or 'utf-8', special_tokens=special_tokens)
        write_npz(target, chunks, len(enc), vocabulary=enc.fingerprint)
    return target


def fingerprint(enc, *data: list[np.ndarray], length: int = 1024) -> str:
    """16 digits, others for another vocabulary, and in all likelihood for other data (each a list of chunks).

    Of the data count the sizes, and some windows of this length.
    """
    digest = hashlib.blake2b(enc.fingerprint.encode(), digest_size=8)
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
        found = list(filter(may_be_file, found))
        require(found, f'the directory {path} holds no files; name one that does, or a file')
        return sorted(found)
    if os.path.exists(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    require(found or path == path.strip(), f'nothing matches the path {path!r}, which begins or ends with a blank; '
            'leave blanks out, as beside commas')
    require(found, f'nothing matches the path {path}; name a file, a directory or a glob (quoted, so that the shell '
            'leaves it alone)')
    files = list(filter(may_be_file, found))
    require(files, f'{path} matches only directories, pipes and devices; add /** for the files in directories')
    return files


def may_be_file(path):  # no directory, pipe or device; a link to nothing is told where it is read
    return os.path.isfile(path) or not os.path.exists(path)


def visible(path):
    """Yields the folders from a path on, and the names of their files; without what is hidden, such as .git."""
    for folder, folders, names in os.walk(path, onerror=raise_):
        folders[:] = [name for name in folders if not name.startswith('.')]
        yield folder, [name for name in names if not name.startswith('.')]


def raise_(error):
    raise error


# Chunks


def iter_chunks(enc, files: list[str], combine: int = 50000, encoding: str = 'utf-8', progress: bool = True,
                encode_groups: Callable | None = None, special_tokens: bool = True
                ) -> Iterator[Iterator[np.ndarray]]:
    """Yields the chunks of the files, each an iterator over its parts (1-D arrays, none empty).

    Exhaust each before the next. Memory is bounded by the encoder's longest piece, not by a file or a chunk; only the
    arrays of a deflated .npz are read whole, one at a time.
    progress: whether to show, on a terminal's stderr, how many of the files' bytes are done, and to tell on
    stderr, at the end, what there is to know of the data. encode_groups: what worker_processes gave, to encode
    in its processes. The parts, joined, and the errors are the same in any case. special_tokens: whether special
    tokens in text files are themselves, or the characters that they are written in.
    """
    text_decoder(encoding)  # an unknown one is told before any work
    encode_groups = encode_groups or functools.partial(in_order, lambda texts: lambda: encode_texts(enc, texts), 1)
    total, seen = sum(map(os.path.getsize, files)), Seen()
    with tqdm(total=total, unit='B', unit_scale=True, desc='encoding', disable=None if progress else True) as bar:
        items = iter_items(enc, files, combine, encoding, bar.update, special_tokens, seen)
        parts = iter_parts(encode_groups(in_groups(items)), token_dtype(len(enc)))
        for part in parts:
            if part is not None:
                yield itertools.chain([part], itertools.takewhile(lambda each: each is not None, parts))
    if progress:
        for line in seen.lines(enc, special_tokens):
            print(line, file=sys.stderr)


@dataclasses.dataclass
class Seen:
    """What the files held: special tokens in texts, documents that follow others in their chunk, and .npz
    that do not name a vocabulary."""
    special: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    following: int = 0
    unchecked: list[str] = dataclasses.field(default_factory=list)

    def lines(self, enc, special_tokens):
        """Yields what is to be told of it."""
        if self.special:
            counts = ', '.join(f'{count} {token[:80] if token.isprintable() else ascii(token)[:80]}'
                               for token, count in self.special.most_common(5))
            ends = all(enc.special[token] == enc.eot for token in self.special)
            kind = 'ends of documents' if ends else 'special tokens'
            taken, flag, other = (kind, 'false', 'text') if special_tokens else ('text', 'true', kind)
            yield f'{counts} in the text are taken as {taken}; --special_tokens {flag} takes them as {other}'
        if self.following and enc.eot is None:
            yield 'No token of the vocabulary ends a text: documents run together'
        if self.unchecked:
            others = f' (and {len(self.unchecked) - 1} others)' if self.unchecked[1:] else ''
            yield (f'{self.unchecked[0]}{others} does not say which vocabulary it was encoded with, so it '
                   'could not be compared with the model\'s')


def iter_items(enc, files, combine, encoding, advance, special_tokens, seen):
    """Yields what the files hold, in order: texts that can be encoded apart, arrays of tokens, the ids of
    special tokens, enc.eot after each document, and None wherever a chunk ends. Adds to seen.
    """
    gathered = 0  # characters in the chunk so far
    for path in files:
        if path.lower().endswith('.npz'):
            yield None
            gathered = 0
            check_vocabulary(enc, path, seen)
            for array in npz_arrays(path):
                if len(array):
                    yield array
                    yield None
            advance(os.path.getsize(path))
        else:
            text = Counted(read_text(path, encoding, advance))
            yield from separate_document(path, document_parts(enc, text, special_tokens, seen))
            seen.following += bool(gathered and text.count)
            gathered += text.count
            if gathered >= combine:
                yield None
                gathered = 0


def check_vocabulary(enc, path, seen):
    """InputError where a .npz says that its ids are of another vocabulary. Adds one that is silent to seen."""
    vocabulary = vocabulary_of(path)
    if vocabulary is None:
        seen.unchecked.append(path)
    elif vocabulary != enc.fingerprint:
        raise InputError(f'{path} was encoded with the vocabulary {vocabulary}, but that of the model is '
                         f'{enc.fingerprint}; encode its text again, with the --model_name of this model')


def document_parts(enc, texts, special_tokens, seen):
    """Yields a file's text in parts, special tokens as ids, and enc.eot after each document. Adds to seen.

    Lines may end around enc.eot's text: in a file that has it, what is white space alone is no document.
    """
    blank: list[str] = []  # white space with which a document begins
    begun = several = False  # whether it has more than that; whether the file has enc.eot's text
    for part in split_at(texts, enc.special):
        if part in enc.special:
            seen.special[part] += 1
            part = enc.special[part] if special_tokens else part
        if part == enc.eot:
            if begun:
                yield part
            blank, begun, several = [], False, True
        elif begun or not isinstance(part, str) or part.strip():
            yield from blank
            yield part
            blank, begun = [], True
        else:
            blank.append(part)
    if begun or (blank and not several):
        yield from blank
        if enc.eot is not None:
            yield enc.eot


def separate_document(path: str, parts: Iterable) -> Iterator:
    """A file's parts, the texts among them cut anew by separate_texts. What is raised names the file."""
    try:
        for are_texts, run in itertools.groupby(parts, lambda part: isinstance(part, str)):
            if are_texts:
                yield from separate_texts(run)
            else:
                yield from run
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


def iter_parts(encode_to_npz, dtype):
    """Yields the items of groups, in place of texts and ids arrays: what is left is arrays, and None for chunk ends."""
    for group, ids in encode_to_npz:
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
    """Yields a file's text in pieces, line ends as they are, without a byte-order mark.

    advance: called with the number of bytes read, piece by piece. Raises InputError (without the file's name, which
    separate_document adds) where the file is not so encoded, or is of a kind that is no text in any encoding.
    """
    decoder = text_decoder(encoding)
    read, mark = 0, paths.BYTE_ORDER_MARK
    with open(path, 'rb') as file:
        while True:
            data = file.read(READ_BYTES)
            if not read:
                paths.check_text(data)
            read += len(data)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeError as error:  # what the decoder had kept from before is part of error.object
                at = read - len(error.object) + error.start if isinstance(error, UnicodeDecodeError) else read
                raise InputError(f'not {encoding} at byte {at} ({getattr(error, "reason", error)}); give its right '
                                 'encoding with --encoding, or leave the file out') from None
            if text:
                text, mark = text.removeprefix(mark), ''
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
        # Not within the block: the pipe's exception would be kept, and with it the message, a buffer that is in use.
        raise InputError(f'one of the {count} worker processes was killed (status {own.process.exitcode}), most likely '
                         'for want of memory; give fewer --workers')

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
