"""Files → documents → chunks of token ids, from which training.windows.Sampler draws.

A chunk is a 1-D array of ids: documents, each followed by the id of the token that ends a text, or an array
of a .npz, unchanged. A text file is one document, or several with <|endoftext|> (or the vocabulary's own end
of text) between them. Arrays that are stored undeflated in a .npz are mapped into memory.

    chunks = load_dataset(enc, 'corpus/')
    Sampler(chunks, seed=1).sample(1024)    # int32 [1024]

iter_chunks with npz.write_npz does the same from file to file, in memory that does not grow with either.
"""
import codecs
import collections
import contextlib
import dataclasses
import glob
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np
import regex
from tqdm import tqdm

from encoder import check_surrogates, special_pattern
from errors import InputError, require
from fast.bulk_encoding import BulkEncoder, encode_slowly
from storage import paths
from storage.npz import npz_arrays, token_dtype, vocabulary_of, write_npz
from training.windows import Sampler

READ_BYTES = 1 << 18
MAX_GROUP_CHARS, MAX_GROUP_ITEMS = 1 << 22, 1 << 14  # encoded at a time
MIN_BULK_CHARS = 1 << 20  # for fewer, making gigatoken ready takes longer than encoding without it
FINGERPRINT_WINDOWS = 64
# Read backwards: the last place where, whatever stands around it, one piece of encoder.PATTERN ends.
SAFE_CUT = regex.compile(r'(?r)(?<=\S)(?=\s)|(?<=\p{L})(?=\P{L})|(?<=\p{N})(?=\P{N})')


def load_dataset(enc, path: str, combine: int = 50000, encoding: str = 'utf-8', special_tokens: bool = True,
                 progress: bool = True) -> list[np.ndarray]:  # 1-D, integers
    """All chunks of a text file, a .npz, a directory with all below it that is not hidden, a glob (`**` for
    any depth), or several of these joined by commas, as in 'a.npz,b/*.txt'.

    Documents are gathered into one chunk until it has `combine` characters. special_tokens, progress: see
    iter_chunks. Raises InputError if nothing matches the path, a text is not in the encoding, or a .npz holds
    anything but one-dimensional integer arrays, or ids of another vocabulary.
    """
    chunks = iter_chunks(enc, find_files(path), combine, encoding or 'utf-8', progress, special_tokens)
    return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in map(list, chunks)]


def encode_to_npz(enc, sources: list[str], directory: str, combine: int = 50000, encoding: str = 'utf-8',
                  special_tokens: bool = True) -> list[str]:
    """For each source, a path from which its chunks can be mapped: the source itself if it means .npz files,
    else a file in the directory, which is encoded unless it is there. The name of that file changes with the
    text files, their times and the vocabulary. Such files of other sources are removed.
    """
    made_by = directory, combine, encoding, special_tokens
    targets = [encoded_source(enc, source, *made_by) for source in sources]
    used = {os.path.realpath(name) for target in targets for name in find_files(target)}
    for path in glob.glob(f'{glob.escape(directory)}/dataset-{16 * "[0-9a-f]"}.npz'):
        if os.path.realpath(path) not in used:
            with contextlib.suppress(OSError):
                os.unlink(path)
    return targets


def encoded_source(enc, source, directory, combine, encoding, special_tokens):  # -> path
    files = find_files(source)
    if all(name.lower().endswith('.npz') for name in files):
        return source
    stats = [[os.path.abspath(name), os.path.getsize(name), os.stat(name).st_mtime_ns] for name in files]
    made_from = json.dumps([stats, combine, encoding, special_tokens, fingerprint(enc)])
    digest = hashlib.blake2b(made_from.encode(), digest_size=8).hexdigest()
    target = os.path.join(directory, f'dataset-{digest}.npz')
    if not os.path.exists(target):
        os.makedirs(directory, exist_ok=True)
        chunks = iter_chunks(enc, files, combine, encoding or 'utf-8', special_tokens=special_tokens)
        write_npz(target, chunks, len(enc), vocabulary=enc.fingerprint)
    return target


def fingerprint(enc, *data: list[np.ndarray], length: int = 1024) -> str:
    """16 digits, others for another vocabulary, and in all likelihood for other data (lists of chunks): their
    sizes and some windows of this length count."""
    digest = hashlib.blake2b(enc.fingerprint.encode(), digest_size=8)
    for chunks in data:
        digest.update(f'{[len(chunk) for chunk in chunks]}'.encode())
        sampler = Sampler(chunks, seed=0)
        for _ in range(FINGERPRINT_WINDOWS):
            digest.update(sampler.sample(length).tobytes())
    return digest.hexdigest()


# Files


def find_files(path: str) -> list[str]:
    """The files of a path, or of several joined by commas, sorted for each path; InputError if one has none.
    The name of a single file may have a comma."""
    alone = paths.expand(path)
    if ',' not in path or os.path.exists(alone) or glob.glob(alone, recursive=True):
        return files_of(alone)
    parts = path.split(',')
    require(all(parts), f'{path} has nothing before, between or after its commas; name a path there')
    return [name for part in parts for name in files_of(paths.expand(part))]


def files_of(path):  # -> sorted list of paths
    if os.path.isdir(path):
        names = sorted(filter(may_be_file, visible_files(path)))
        require(names, f'the directory {path} holds no files; name one that does, or a file')
        return names
    if os.path.exists(path):
        return [path]
    matches = sorted(glob.glob(path, recursive=True))
    if not matches and path != path.strip():
        raise InputError(f'nothing matches the path {path!r}, which begins or ends with a blank; leave '
                         'blanks out, as beside commas')
    require(matches, f'nothing matches the path {path}; name a file, a directory or a glob (quoted, so that '
                     'the shell leaves it alone)')
    names = list(filter(may_be_file, matches))
    require(names, f'{path} matches only directories, pipes and devices; add /** for files in directories')
    return names


def may_be_file(path):  # a link to nothing may: who reads it gets an error that names it
    return os.path.isfile(path) or not os.path.exists(path)


def visible_files(path):
    for folder, folders, names in os.walk(path, onerror=reraise):
        folders[:] = [name for name in folders if not name.startswith('.')]
        yield from (os.path.join(folder, name) for name in names if not name.startswith('.'))


def reraise(error):
    raise error


def read_text(path: str, encoding: str, advance: Callable[[int], None] | None = None) -> Iterator[str]:
    """Yields a file's text in parts, with its line ends, without a byte-order mark.

    advance: called with the number of bytes of each part. Raises InputError (to which separate_document adds
    the file's name) if the file is not in this encoding, or of a kind that is no text.
    """
    decoder, n_bytes, n_characters, data = text_decoder(encoding), 0, 0, b' '
    with open(path, 'rb') as file:
        while data:
            data = file.read(READ_BYTES)
            if not n_bytes:
                paths.check_text(data)
            n_bytes += len(data)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeError as error:
                # error.object begins with the bytes that the decoder had kept from before.
                kept = len(error.object) - error.start if isinstance(error, UnicodeDecodeError) else 0
                reason = getattr(error, 'reason', error)
                raise InputError(f'not {encoding} at byte {n_bytes - kept} ({reason}); give its right '
                                 'encoding with --encoding, or leave the file out') from None
            check_surrogates(text, n_characters)
            part = text if n_characters else text.removeprefix(paths.BYTE_ORDER_MARK)
            n_characters += len(text)
            if part:
                yield part
            if advance:
                advance(len(data))


def text_decoder(encoding: str) -> codecs.IncrementalDecoder:
    """A decoder of that encoding; InputError if Python has none, or it gives no text (hex)."""
    with contextlib.suppress(LookupError, TypeError, ValueError):
        decoder = codecs.getincrementaldecoder(encoding)()
        if isinstance(decoder.decode(b''), str):
            return decoder
    raise InputError(f'--encoding {encoding!r} is not an encoding of text that Python knows; try utf-8 or '
                     'latin-1')


# Documents


def split_at(texts: Iterable[str], tokens: Collection[str]) -> Iterator[str]:  # none empty
    """Yields the joined texts, which may be cut anywhere, cut so that each of the tokens stands alone; of
    several at one place, the longest does."""
    pattern, longest, held = special_pattern(tokens), max(map(len, tokens), default=1), ''
    for part in itertools.chain(texts, [None]):
        text = held + (part or '')
        # A token that begins from here on may be longer than can be seen.
        decided = len(text) if part is None else len(text) - longest + 1
        start = 0
        for match in pattern.finditer(text):
            if match.start() >= decided:
                break
            if start < match.start():
                yield text[start:match.start()]
            yield match[0]
            start = match.end()
        if start < decided:
            yield text[start:decided]
        held = text[max(start, decided):]


def document_parts(enc, texts, special_tokens, notes):
    """Yields a file's text in parts, special tokens as ids, and enc.eot after each document. Adds to notes.

    In a file that has enc.eot's text, white space alone is no document: lines may end around enc.eot.
    """
    blank: list[str] = []  # white space at the beginning of a document
    begun = several = False  # whether the document has more than that; whether the file has enc.eot's text
    for part in split_at(texts, enc.special):
        notes.characters += len(part)
        if part in enc.special:
            notes.special[part] += 1
            part = enc.special[part] if special_tokens else part
        if part == enc.eot:
            if begun:
                yield part
            blank, begun, several = [], False, True
        elif begun or not isinstance(part, str) or part.strip():
            yield from [*blank, part]
            blank, begun = [], True
        else:
            blank.append(part)
    if begun or (blank and not several):
        yield from blank
        if enc.eot is not None:
            yield enc.eot


def separate_document(path: str, parts: Iterable) -> Iterator:
    """Yields a file's parts, runs of texts cut anew, only where a cut changes no id. Holds the longest piece
    in memory. InputErrors get the file's name."""
    held: list[str] = []
    try:
        for part in parts:
            if not isinstance(part, str):
                yield from [''.join(held), part] if held else [part]
                held = []
                continue
            cut = held and SAFE_CUT.search(held[-1][-1] + part)
            if cut:
                yield ''.join([*held, part[:cut.start() - 1]])
                held, part = [], part[cut.start() - 1:]
            held.append(part)
        if held:
            yield ''.join(held)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None


# Chunks


@dataclasses.dataclass
class Notes:
    """What the user is told about the data: counts of special tokens in texts, documents that follow others
    in their chunk, and .npz that do not name a vocabulary; and how many characters have been read."""
    characters: int = 0
    special: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    following: int = 0
    unchecked: list[str] = dataclasses.field(default_factory=list)

    def lines(self, enc, special_tokens):
        if self.special:
            counts = ', '.join(f'{count} {token[:80] if token.isprintable() else ascii(token)[:80]}'
                               for token, count in self.special.most_common(5))
            are_ends = all(enc.special[token] == enc.eot for token in self.special)
            kind = 'ends of documents' if are_ends else 'special tokens'
            taken, flag, other = (kind, 'false', 'text') if special_tokens else ('text', 'true', kind)
            yield (f'{counts} in the text are taken as {taken}; --special_tokens {flag} takes them as '
                   f'{other}')
        if self.following and enc.eot is None:
            yield 'No token of the vocabulary ends a text: documents run together'
        if self.unchecked:
            others = f' (and {len(self.unchecked) - 1} others)' if self.unchecked[1:] else ''
            yield (f'{self.unchecked[0]}{others} does not say which vocabulary it was encoded with, so it '
                   'could not be compared with the model\'s')


def iter_chunks(enc, files: list[str], combine: int = 50000, encoding: str = 'utf-8', progress: bool = True,
                special_tokens: bool = True, parallel: bool = True) -> Iterator[Iterator[np.ndarray]]:
    """Yields the chunks of the files, each an iterator over its parts (1-D arrays, none empty).

    Exhaust each before the next. Memory is bounded by the longest piece (a run of letters, digits, white
    space or others), not by a file or chunk; only arrays of a deflated .npz are read whole, one at a time.
    progress: whether stderr shows how many bytes are done, if it is a terminal, and at the end notes on the
    data. special_tokens: whether these, in text files, are their own ids. parallel: see BulkEncoder.
    """
    text_decoder(encoding)  # an unknown encoding is refused before any work
    total, notes = sum(map(os.path.getsize, files)), Notes()
    hidden = None if progress else True  # None: if stderr is no terminal
    with tqdm(total=total, unit='B', unit_scale=True, desc='encoding', disable=hidden) as bar:
        items = iter_items(enc, files, combine, encoding, bar.update, special_tokens, notes)
        parts = encode_items(enc, items, parallel)
        for is_end, chunk in itertools.groupby(parts, lambda part: part is None):
            if not is_end:
                yield chunk
    if progress:
        for line in notes.lines(enc, special_tokens):
            print(line, file=sys.stderr)


def iter_items(enc, files, combine, encoding, advance, special_tokens, notes):
    """Yields the content of the files: texts that can be encoded one by one, arrays of tokens, ids of special
    tokens, enc.eot after each document, and None at the end of a chunk. Adds to notes."""
    gathered = 0  # characters in the chunk so far
    for path in files:
        if path.lower().endswith('.npz'):
            yield None
            gathered = 0
            check_vocabulary(enc, path, notes)
            for array in npz_arrays(path):
                if len(array):
                    yield array
                    yield None
            advance(os.path.getsize(path))
        else:
            before = notes.characters
            texts = read_text(path, encoding, advance)
            yield from separate_document(path, document_parts(enc, texts, special_tokens, notes))
            length = notes.characters - before
            notes.following += bool(gathered and length)
            gathered += length
            if gathered >= combine:
                yield None
                gathered = 0


def check_vocabulary(enc, path, notes):
    """Raises InputError if a .npz says that its ids are of another vocabulary; notes silent ones."""
    vocabulary = vocabulary_of(path)
    if vocabulary is None:
        notes.unchecked.append(path)
    elif vocabulary != enc.fingerprint:
        raise InputError(f'{path} was encoded with the vocabulary {vocabulary}, but that of the model is '
                         f'{enc.fingerprint}; encode its text again, with the --model_name of this model')


def encode_items(enc, items, parallel):
    """Yields the items of iter_items with ids and texts as arrays: only arrays and None are left."""
    dtype, bulk_encoder = token_dtype(len(enc)), None
    for group in in_groups(items):
        texts = [item for item in group if isinstance(item, str)]
        if not bulk_encoder and sum(map(len, texts)) >= MIN_BULK_CHARS:
            bulk_encoder = BulkEncoder(enc, parallel)
        rows = iter(bulk_encoder.encode(texts) if bulk_encoder and texts else encode_slowly(enc, texts))
        for item in group:
            if isinstance(item, str):
                yield next(rows).astype(dtype, copy=False)
            else:
                yield np.array([item], dtype) if isinstance(item, int) else item


def in_groups(items):
    """Yields lists of items that are encoded together. An array of a .npz ends its list: it may be large, and
    an error in it comes before errors in the files after it."""
    group, characters = [], 0
    for item in items:
        group.append(item)
        characters += len(item) if isinstance(item, str) else 0
        if characters >= MAX_GROUP_CHARS or len(group) >= MAX_GROUP_ITEMS or isinstance(item, np.ndarray):
            yield group
            group, characters = [], 0
    if group:
        yield group
