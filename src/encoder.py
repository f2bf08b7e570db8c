"""GPT-2's byte-level byte-pair encoding: text ↔ token ids.

A text is split into pieces (roughly words, each with the space before it). The bytes of a piece are its
first symbols. Neighbouring symbols are merged, always the pair that stands first in vocab.bpe, until no
pair of that list is left (Sennrich et al. 2016, section 3.2; Radford et al. 2019, section 2.2).

    enc = get_encoder('124M')
    enc.encode('Hello world')    # [15496, 995]
    enc.decode([15496, 995])     # 'Hello world'

The ids are those of tiktoken's r50k_base; for characters newer than its Unicode tables, `regex` decides what
is a letter. fast/bulk_encoding.py encodes whole corpora, with the same ids.
"""
import functools
import hashlib
import heapq
import json
import numbers
import os
import re
from collections.abc import Collection, Iterable, Sequence

import regex

from errors import InputError, require
from storage import paths, vocabulary_files
from storage.vocabulary_files import REMEDY, VOCABULARY_FILES, SpecialTokens

EOT = '<|endoftext|>'
PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
CACHED_PIECES, MAX_CACHED_CHARS = 1 << 16, 64  # some 20 MB at most


@functools.cache
def bytes_to_unicode() -> dict[int, str]:
    """A dict of 256, in the order of GPT-2's ids: byte → the character that stands for it in the two files.

    Printable characters of Latin-1 stand for themselves; the others take the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return dict(zip(printable + hidden, map(chr, [*printable, *range(256, 256 + len(hidden))]), strict=True))


class Encoder:
    """Encodes and decodes with one vocabulary; see the module's docstring.

    encoder: symbol → id; bpe_merges: pairs of symbols, first to be merged first; errors: as in bytes.decode;
    names: of the two files, for messages; special: None for <|endoftext|> alone, if the vocabulary has it.
    Attributes: encoder, decoder (id → symbol), bpe_ranks (pair → rank), token_bytes (id → bytes), n_vocab
    (largest id + 1), special (text of a special token → id), eot (id of the token that ends a text, or None).
    Raises InputError if the vocabulary or the merges cannot be used.
    """

    def __init__(self, encoder: dict[str, int], bpe_merges: Sequence[Sequence[str]], errors: str = 'replace',
                 names: Sequence[str] = VOCABULARY_FILES, special: SpecialTokens | None = None):
        vocabulary_files.check_vocabulary(encoder, names[0])
        byte_decoder = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
        missing = [symbol for symbol in byte_decoder if symbol not in encoder]
        require(not missing,
                f'{names[0]} lacks {len(missing)} of the 256 byte symbols, the first {missing[:1]}; {REMEDY}')
        vocabulary_files.check_merges(encoder, bpe_merges, names)
        self.encoder, self.errors = encoder, errors
        self.decoder = {id: symbol for symbol, id in encoder.items()}
        self.n_vocab = max(self.decoder) + 1
        self.bpe_ranks = {tuple(pair): rank for rank, pair in enumerate(bpe_merges)}
        self.bpe = functools.lru_cache(CACHED_PIECES)(self.merge)
        self.token_bytes = {id: symbol_bytes(symbol, byte_decoder) for symbol, id in encoder.items()}
        tokens, end = special or ((EOT,) if EOT in encoder else (), EOT)
        self.special: dict[str, int] = {}
        mergeable = {*byte_decoder, *map(''.join, self.bpe_ranks)}
        for text in tokens:
            require(text in encoder, f'{names[0]} lacks the special token {text[:80]!r}; {REMEDY}')
            id, text_bytes = encoder[text], text.encode('utf-8', 'surrogatepass')
            require(text not in mergeable or self.token_bytes[id] == text_bytes,
                    f'{text[:80]!r} can be no special token, as it stands for other bytes in {names[0]}; '
                    'take it off the list of special tokens')
            self.special[text], self.token_bytes[id] = id, text_bytes
        self.eot = None if end is None else self.special.get(end)

    def __len__(self):
        return self.n_vocab

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 digits, others for another vocabulary."""
        content = json.dumps([self.encoder, self.special, self.eot], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

    def merge(self, piece: str) -> list[int]:
        """The ids of one piece, by a heap of (rank, place) over a linked list: n log n. `bpe` is cached."""
        symbols = [*map(bytes_to_unicode().get, piece.encode()), None]  # None: merged away, or the end
        end = len(symbols) - 1  # which is also place -1
        before, after = list(range(-1, end)), [*range(1, end + 1), end]

        def rank_at(place):
            return self.bpe_ranks.get((symbols[place], symbols[after[place]]))
        heap = [(rank, place) for place in range(end) if (rank := rank_at(place)) is not None]
        heapq.heapify(heap)
        while heap:
            rank, place = heapq.heappop(heap)
            if rank_at(place) != rank:
                continue  # one of the pair has been merged with its other neighbour since
            gone = after[place]
            symbols[place], symbols[gone] = symbols[place] + symbols[gone], None
            after[place] = after[gone]
            before[after[place]] = place
            for changed in (before[place], place):
                if (rank := rank_at(changed)) is not None:
                    heapq.heappush(heap, (rank, changed))
        return [self.encoder[symbol] for symbol in symbols if symbol is not None]

    def encode(self, text: str, allowed_special: bool = False) -> list[int]:
        """The token ids of a text. With allowed_special, special tokens in it are their own ids (of several
        at one place, the longest); else they are text like any other.

        Raises InputError for a lone surrogate (half a UTF-16 pair), which has no UTF-8 form.
        """
        check_surrogates(text)
        ids: list[int] = []
        parts = special_pattern(self.special).split(text) if allowed_special else [text]
        for number, part in enumerate(parts):
            if number % 2:
                ids.append(self.special[part])
                continue
            for piece in PATTERN.findall(part):
                ids += self.bpe(piece) if len(piece) <= MAX_CACHED_CHARS else self.merge(piece)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids: a list, a NumPy array, any iterable of integers.

        Ids that end within a character give U+FFFD there. Raises InputError for a value that is no id.
        """
        return self.decode_bytes(ids).decode('utf-8', errors=self.errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of token ids, which may begin or end within a character. Raises as decode does."""
        ids = ids.tolist() if hasattr(ids, 'tolist') else list(ids)
        for kind in set(map(type, ids)):
            if kind is bool or not issubclass(kind, numbers.Integral):
                wrong = next(id for id in ids if type(id) is kind)
                raise InputError(f'token id {wrong!r} is not an integer; ids are 0 to {self.n_vocab - 1}')
        try:
            return b''.join(map(self.token_bytes.__getitem__, ids))
        except KeyError as error:
            raise InputError(f'token id {error.args[0]} is not in the vocabulary, whose ids are 0 to '
                             f'{self.n_vocab - 1}; check that text and model belong together') from None


def get_encoder(model_name: str, models_dir: str = 'models') -> Encoder:
    """The Encoder of a model's vocabulary files; InputError if these are missing or damaged."""
    directory = paths.find_model(model_name, models_dir)
    vocabulary, merges, special = vocabulary_files.load_vocabulary(directory)
    names = [os.path.join(directory, name) for name in VOCABULARY_FILES]
    return Encoder(vocabulary, merges, names=names, special=special)


def special_pattern(tokens: Collection[str]) -> re.Pattern:
    """Matches any of the tokens, of several at one place the longest, as group 1."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(f'({"|".join(map(re.escape, longest_first)) or "(?!)"})')


def check_surrogates(text: str, seen: int = 0):
    """Raises InputError for a lone surrogate, with its offset after `seen` characters before the text."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        place, code = seen + error.start, ord(text[error.start])
        raise InputError(f'the character at offset {place} is U+{code:04X}, half of a UTF-16 pair, or a byte '
                         'that was not UTF-8; remove it, or read the text with its own encoding') from None


def symbol_bytes(symbol, byte_decoder):  # str -> bytes
    """The bytes that a symbol is spelt with. An added token that no byte symbols spell is its own text."""
    try:
        return bytes(map(byte_decoder.__getitem__, symbol))
    except KeyError:
        return symbol.encode('utf-8', 'surrogatepass')
