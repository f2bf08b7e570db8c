"""Files → documents → chunks of token ids, from which training.windows.Sampler draws.

A chunk is an array of a .npz, or documents, each followed by the id that ends a text. A text file is a
document, or several with <|endoftext|> (or the vocabulary's own end) between.
"""
import glob
import io
import itertools
import os
import sys

import numpy as np
import regex
from tqdm import tqdm

from encoder import digest, special_pattern
from errors import require
from fast.bulk_encoding import BulkEncoder
from storage import paths
from storage.npz import npz_arrays, token_dtype, vocabulary_of, write_npz
from storage.text_files import open_text, read_text
from training.windows import Sampler

MAX_GROUP_SIZE = 1 << 22  # bytes, about, of texts encoded together
# The last place (?r) where encoder.PATTERN always ends a piece.
SAFE_CUT = regex.compile(r'(?r)(?<=\S)(?=\s)|(?<=\p{L})(?=\P{L})|(?<=\p{N})(?=\P{N})')


def load_dataset(enc, path: str, *options, **flags) -> list[np.ndarray]:  # 1-D, integers
    """All chunks of a path's files, with options and flags of iter_chunks."""
    chunks = map(list, iter_chunks(enc, find_files(path), *options, **flags))
    return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in chunks]


def encode_to_npz(enc, sources, folder, *options):
    """The sources, text as a .npz in the folder. Its name is a hash of files, times and options (of
    iter_chunks). Older ones go."""
    targets = []
    for source in sources:
        files = find_files(source)
        if not all(map(is_npz, files)):
            stats = [[os.path.abspath(path), os.path.getsize(path), os.path.getmtime(path)] for path in files]
            source = f'{folder}/dataset-{digest([stats, options, enc.fingerprint])}.npz'
            if not os.path.exists(source):
                write_npz(source, iter_chunks(enc, files, *options), len(enc), vocabulary=enc.fingerprint)
        targets.append(source)
    used = {os.path.basename(path) for target in targets for path in find_files(target)}
    for path in glob.glob(f'{glob.escape(folder)}/dataset-{16 * "[0-9a-f]"}.npz'):
        if os.path.basename(path) not in used:
            os.unlink(path)
    return targets


def fingerprint(enc, *data, length=1024):
    """16 digits that tell vocabularies and data (sizes, 64 windows) apart."""
    contents = [enc.fingerprint]
    for chunks in data:
        sampler = Sampler(chunks, seed=0)
        contents += [list(map(len, chunks)), [sampler.sample(length).tolist() for _ in range(64)]]
    return digest(contents)


def find_files(path):
    """The sorted files of a path, a folder (at any depth, none hidden), a glob, or several of these with
    commas. Raises InputError if one has none."""
    whole, files = paths.expand(path), []
    is_one = os.path.exists(whole) or glob.glob(whole, recursive=True)  # a name may have a comma
    for part in [whole] if is_one else map(paths.expand, path.split(',')):
        names = [part] if os.path.exists(part) else glob.glob(part, recursive=True)
        if os.path.isdir(part):
            names = visible(part)
        # A link to nothing stays, for an error to name it. A pipe must be named.
        names = [name for name in names if os.path.isfile(name) or name == part or not os.path.exists(name)]
        files += require(sorted(names), f'nothing matches the path {part}; quote a glob, '
                         'with no blanks beside commas')
    return files


def visible(folder):
    for entry in os.scandir(folder):
        if entry.name[0] != '.':
            yield from visible(entry.path) if entry.is_dir(follow_symlinks=False) else [entry.path]


def is_npz(path):  # -> bool
    return path.lower().endswith('.npz')


def iter_chunks(enc, files, combine=50000, encoding='utf-8', special_tokens=True, progress=True):
    """Yields chunks, iterators over parts (1-D arrays), each to be exhausted before the next. Memory is
    bounded by the longest piece of a text and the largest deflated array."""
    open_text(io.BytesIO(), encoding)  # refuses an unknown encoding
    with tqdm(total=sum(map(os.path.getsize, files)), desc='encoding', unit='B', unit_scale=True,
              disable=None if progress else True) as bar:
        reader = Reader(enc, combine, encoding, special_tokens, bar)
        for kind, parts in itertools.groupby(encode_items(enc, reader.items(files)), type):
            if kind is np.ndarray:
                yield parts
    for note in reader.notes() if progress else ():
        print(note, file=sys.stderr)


def encode_items(enc, items):
    """Yields a Reader's items, texts as arrays."""
    encoder, dtype, group, size = BulkEncoder(enc), token_dtype(len(enc)), [], 0
    for item in itertools.chain(items, [None]):
        if item is not None:
            group.append(item)
            size += 256 + len(item)  # 256 for its objects
        is_array = isinstance(item, np.ndarray) and len(item) > 1  # of a .npz
        if item is None or size >= MAX_GROUP_SIZE or is_array:
            rows = iter(encoder.encode([item for item in group if isinstance(item, str)]))
            for item in group:
                yield next(rows).astype(dtype, copy=False) if isinstance(item, str) else item
            group, size = [], 0


class Reader:
    """items: texts to encode alone, arrays of ids, and () at a chunk's end."""

    def __init__(self, enc, combine, encoding, special_tokens, bar):
        self.enc, self.combine, self.encoding, self.bar = enc, combine, encoding, bar
        special, dtype = enc.special if special_tokens else {}, token_dtype(len(enc))
        self.special = {text: np.array([id], dtype) for text, id in special.items()}
        self.ends = [None, *(text for text, id in special.items() if id == enc.eot)]
        self.end = [] if enc.eot is None else [np.array([enc.eot], dtype)]
        self.unnamed, self.n_special, self.run_together = [], 0, False
        self.n_chars = 0  # of the chunk

    def items(self, files):
        for path in files:
            if is_npz(path):
                yield from self.arrays(path)
                self.n_chars = self.combine
            else:
                self.run_together |= self.n_chars > 0 and not self.end
                yield from self.documents(path)
            if self.n_chars >= self.combine:
                yield ()
                self.n_chars = 0

    def arrays(self, path):
        vocabulary, expected = vocabulary_of(path), self.enc.fingerprint
        require(vocabulary in (None, expected), f'{path} is of the vocabulary {vocabulary}, not {expected}; '
                'encode its text with this --model_name')
        if vocabulary is None:
            self.unnamed.append(path)
        for array in filter(len, npz_arrays(path)):
            yield from ((), array)
        self.bar.update(os.path.getsize(path))

    def documents(self, path):
        """Drops a document of white space, but not a whole file."""
        is_open, several = False, False
        for piece, following in itertools.pairwise(itertools.chain(self.pieces(path), [None, None])):
            if piece in self.ends:
                if is_open:
                    yield from self.end
                is_open, several = False, True
            elif is_open or not piece.isspace() or following not in self.ends or not (several or following):
                yield self.special.get(piece, piece)
                is_open = True

    def pieces(self, path):
        for piece in split_text(read_text(path, self.encoding), self.special):
            self.n_chars += len(piece)
            self.bar.update(len(piece.encode()))
            self.n_special += piece in self.special
            yield piece

    def notes(self):
        if self.n_special:
            yield f'the text has {self.n_special} special tokens; --special_tokens false takes them as text'
        if self.run_together:
            yield 'no token of the vocabulary ends a text: documents run together'
        if self.unnamed:
            yield f'{self.unnamed[0]} does not name its vocabulary ({len(self.unnamed)} such files)'


def split_text(texts, tokens):
    """Yields a text of parts in pieces: each token, and text cut where no id changes."""
    pattern, longest, text = special_pattern(tokens), max(map(len, tokens), default=1), ''
    for part in texts:
        text += part
        limit = max(len(text) - longest + 1, 0)  # a token from here may go on in the next part
        ends = [match.end() for match in pattern.finditer(text) if match.start() < limit]
        start = ends[-1] if ends else 0
        match = SAFE_CUT.search(text, start, max(start, limit))
        cut = match.start() if match else start
        yield from filter(None, pattern.split(text[:cut]))
        text = text[cut:]
    yield from filter(None, pattern.split(text))
