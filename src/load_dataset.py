"""Files → documents → chunks of token ids, from which training.windows.Sampler draws.

A chunk is an array of a .npz, or documents, each followed by the id that ends a text. A row of a .jsonl,
.csv, .tsv or .parquet is a document. Any other file is one, too, or several with <|endoftext|> (or the
vocabulary's own end) between. Ids of prompts, which are not learned, have PROMPT added.
"""
import glob
import io
import itertools
import os
import re
import sys

import numpy as np
import regex
from tqdm import tqdm

from encoder import digest, special_pattern
from errors import require
from fast.bulk_encoding import BulkEncoder
from storage import npz, paths, rows, text_files
from storage.template import DEFAULT, Prompt, Template
from training.windows import Sampler

MAX_GROUP_SIZE = 1 << 22  # bytes, about, of texts encoded together
MAX_PIECE = 1 << 24  # characters with no place to cut, for memory
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
                npz.write_npz(source, iter_chunks(enc, files, *options), enc.n_vocab, False, enc.fingerprint)
        targets.append(source)
    used = {os.path.basename(path) for target in targets for path in find_files(target)}
    for path in glob.glob(f'{glob.escape(folder)}/dataset-{16 * "[0-9a-f]"}.npz'):
        if os.path.basename(path) not in used:
            os.unlink(path)
    return targets


def fingerprint(enc, *data, length=1024):
    """16 digits that tell vocabularies and data (pairs of weight and chunks: sizes, 64 windows) apart."""
    contents = [enc.fingerprint]
    for weight, chunks in data:
        sampler = Sampler(chunks, seed=0)
        contents += [weight, list(map(len, chunks)), [sampler.sample(length).tolist() for _ in range(64)]]
    return digest(contents)


def find_parts(path):
    """'a/:0.7,b.jsonl:0.3' -> [('a/', 0.7), ('b.jsonl', 0.3)]; of a path without weights [(path, 1.0)]."""
    parts = [part.rpartition(':') for part in path.split(',')]
    are_numbers = [bool(colon and re.fullmatch(r'\d{0,9}\.?\d{1,9}', weight)) for _, colon, weight in parts]
    if not any(are_numbers) or os.path.exists(paths.expand(path)):
        return [(path, 1.0)]
    require(all(are_numbers) and all(float(weight) and name for name, _, weight in parts),
            f'{path}: each part of a mixture needs a decimal above 0, as in novels/:0.7,letters.jsonl:0.3')
    return [(name, float(weight)) for name, _, weight in parts]


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


def iter_chunks(enc, files, combine=50000, encoding='utf-8', special_tokens=True, text_field='text',
                template=DEFAULT, progress=True):
    """Yields chunks, iterators over parts (1-D arrays), each to be exhausted before the next. Memory is
    bounded by the longest piece or row of a text and the largest deflated array. text_field: of rows that are
    a text; template: of others, see storage.template."""
    text_files.open_text(io.BufferedReader(io.BytesIO()), encoding)  # refuses an unknown encoding
    with tqdm(total=sum(map(os.path.getsize, files)), desc='encoding', unit='B', unit_scale=True,
              disable=None if progress else True) as bar:
        reader = Reader(enc, combine, encoding, special_tokens, text_field, Template(template), bar)
        for kind, parts in itertools.groupby(encode_items(enc, reader.items(files)), type):
            if kind is np.ndarray:
                yield parts
    for note in reader.notes() if progress else ():
        print(note, file=sys.stderr)


def encode_items(enc, items):
    """Yields a Reader's items, texts as arrays."""
    encoder, dtype, group, size = BulkEncoder(enc), npz.token_dtype(enc.n_vocab), [], 0
    for item in itertools.chain(items, [None]):
        if item is not None:
            group.append(item)
            size += 256 + len(item)  # 256 for its objects
        is_array = isinstance(item, np.ndarray) and len(item) > 1  # of a .npz
        if item is None or size >= MAX_GROUP_SIZE or is_array:
            encoded = iter(encoder.encode([item for item in group if isinstance(item, str)]))
            for item in group:
                ids = next(encoded).astype(dtype, copy=False) if isinstance(item, str) else item
                yield ids.astype(np.int32) | npz.PROMPT if isinstance(item, Prompt) else ids
            group, size = [], 0


def iter_documents(path, encoding, text_field, template, tell=None):
    """Yields a file's documents, lists of texts, as Template.texts; without rows one, a text in parts."""
    if text_files.suffixes(path)[0] not in rows.READERS:
        yield [text_files.read_text(path, encoding, tell)]
        return
    for place, row in rows.read_rows(path, encoding, (text_field, 'prompt', 'completion', 'messages'), tell):
        yield template.texts(row, place, text_field)


class Reader:
    """items: texts to encode alone, arrays of ids, and () at a chunk's end."""

    def __init__(self, enc, combine, encoding, special_tokens, text_field, template, bar):
        self.enc, self.combine, self.encoding, self.bar = enc, combine, encoding, bar
        self.text_field, self.template = text_field, template
        special, dtype = enc.special if special_tokens else {}, npz.token_dtype(enc.n_vocab)
        self.special = {text: np.array([id], dtype) for text, id in special.items()}
        self.ends = [None, *(text for text, id in special.items() if id == enc.eot)]
        self.end_ids = [] if enc.eot is None else [np.array([enc.eot], dtype)]
        self.unnamed, self.n_special, self.run_together = [], 0, False
        self.n_chars = 0  # of the chunk

    def items(self, files):
        for path in files:
            def tell(n_bytes, before=self.bar.n):  # of this file
                self.bar.update(before + n_bytes - self.bar.n)
            if is_npz(path):
                yield from self.arrays(path)
                self.n_chars = self.combine
            else:
                yield from self.texts(path, tell)
            tell(os.path.getsize(path))
            if self.n_chars >= self.combine:
                yield ()
                self.n_chars = 0

    def arrays(self, path):
        vocabulary, expected = npz.vocabulary_of(path), self.enc.fingerprint
        require(vocabulary in (None, expected), f'{path} is of the vocabulary {vocabulary}, not {expected}; '
                'encode its text with this --model_name')
        if vocabulary is None:
            self.unnamed.append(path)
        for array in filter(len, npz.npz_arrays(path)):
            yield from ((), array)

    def texts(self, path, tell):
        has_prompts = False  # the chunk
        for texts in iter_documents(path, self.encoding, self.text_field, self.template, tell):
            if isinstance(texts[0], Prompt) and not has_prompts:
                yield from [()] if self.n_chars else []
                yield Prompt('')  # begins a chunk of int32, even if the first prompt is empty
                has_prompts, self.n_chars = True, 0
            require(not any(end in answer for answer in texts[1:-1:2] for end in self.ends[1:]),
                    f'{path}: the text that ends documents stands between answers of a conversation; give a '
                    '--template with another text after {completion}')
            self.run_together |= self.n_chars > 0 and not self.end_ids
            yield from self.document(path, texts)
        if has_prompts:
            self.n_chars = self.combine

    def document(self, path, texts):
        """Drops a document of white space, but not a whole file or row. What ends documents is an id like
        others in a prompt."""
        is_open, several = False, False
        for piece, following in itertools.pairwise(itertools.chain(self.pieces(path, texts), [None, None])):
            if isinstance(piece, Prompt):
                yield self.special[piece].astype(np.int32) | npz.PROMPT if piece in self.special else piece
                is_open = True
            elif piece in self.ends:
                if is_open:
                    yield from self.end_ids
                is_open, several = False, True
            elif is_open or not piece.isspace() or following not in self.ends or not (several or following):
                yield self.special.get(piece, piece)
                is_open = True

    def pieces(self, path, texts):
        for text in texts:
            for piece in split_text(text, self.special, f'{path}: '):
                self.n_chars += len(piece)
                self.n_special += piece in self.special
                yield Prompt(piece) if isinstance(text, Prompt) else piece

    def notes(self):
        if self.n_special:
            yield f'the text has {self.n_special} special tokens; --special_tokens false takes them as text'
        if self.run_together:
            yield 'no token of the vocabulary ends a text: documents run together'
        if self.unnamed:
            yield f'{self.unnamed[0]} does not name its vocabulary ({len(self.unnamed)} such files)'


def split_text(texts, tokens, place=''):
    """Yields a text, maybe of parts, in pieces: each token, and text cut where no id changes."""
    pattern, longest = special_pattern(tokens), max(map(len, tokens), default=1)
    text, searched = '', 0  # from where on a cut or token may come
    for part in [texts] if isinstance(texts, str) else texts:
        text += part
        limit = max(len(text) - longest + 1, 0)  # a token from here may go on in the next part
        ends = [match.end() for match in pattern.finditer(text, searched) if match.start() < limit]
        start = ends[-1] if ends else 0
        match = SAFE_CUT.search(text, max(start, searched - 1), max(start, limit))
        cut = match.start() if match else start
        yield from filter(None, pattern.split(text[:cut]))
        text, searched = text[cut:], max(limit - cut, 0)
        require(len(text) < MAX_PIECE, f'{place}{MAX_PIECE:,} characters are one piece, which would end at a '
                'blank, or between letters, digits and others; is this text?')
    yield from filter(None, pattern.split(text))
