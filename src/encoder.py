"""GPT-2's byte-level byte-pair encoding: text ↔ token ids.

A text is split into pieces, roughly words with the space before. A piece's symbols are its bytes at
first; the neighbours that stand first in vocab.bpe are merged next (Sennrich et al. 2016, section 3.2).
get_encoder('124M').encode('Hello world') == [15496, 995].
"""
import functools
import hashlib
import heapq
import itertools
import json
import operator
import re

import regex

from errors import InputError, require
from storage import paths
from storage.text_files import check_surrogates
from storage.vocabulary_files import VOCABULARY_FILES, SpecialTokens, check_vocabulary, load_vocabulary

EOT = '<|endoftext|>'
PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
CACHED_PIECES, CACHED_CHARS = 1 << 16, 64  # some 20 MB at most


@functools.cache
def bytes_to_unicode():
    """Byte → symbol, in order of ids: printable Latin-1 is itself, others are from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


class Encoder:
    """Encodes and decodes. encoder: symbol → id; bpe_merges: pairs; names: of their files; special:
    SpecialTokens, None for EOT. Raises InputError if these do not belong together."""

    def __init__(self, encoder, bpe_merges, errors='replace', names=VOCABULARY_FILES, special=None):
        check_vocabulary(encoder, names[0])
        special = special or SpecialTokens([EOT] if EOT in encoder else [], EOT)
        byte_of = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
        own = {*byte_of, *map(''.join, bpe_merges)}
        for symbol in [*byte_of, *itertools.chain(*bpe_merges), *own, *special.tokens]:
            if symbol not in encoder:
                raise InputError(f'{names[0]} lacks {symbol[:80]!r}, a byte, special token or symbol of '
                                 f'{names[1]}; take both from one model')
        self.encoder, self.errors = encoder, errors
        self.decoder = {id: symbol for symbol, id in encoder.items()}
        self.n_vocab = max(self.decoder) + 1
        self.bpe_ranks = {tuple(pair): rank for rank, pair in enumerate(bpe_merges)}
        self.bpe = functools.lru_cache(CACHED_PIECES)(self.merge)
        self.token_bytes = {}
        for symbol, id in encoder.items():
            own_text = symbol.encode('utf-8', 'surrogatepass')  # of an added token
            is_bytes = byte_of.keys() >= {*symbol}
            self.token_bytes[id] = bytes(map(byte_of.__getitem__, symbol)) if is_bytes else own_text
        self.special = {text: encoder[text] for text in special.tokens}
        self.eot = self.special.get(special.end or '')  # the id that ends a text, or None
        for text, id in self.special.items():
            data = text.encode('utf-8', 'surrogatepass')
            require(text not in own or self.token_bytes[id] == data,
                    f'{text[:80]!r} can be no special token: it stands for other bytes in {names[0]}; '
                    'take it off the list')
            self.token_bytes[id] = data

    @functools.cached_property
    def fingerprint(self):
        return digest([self.encoder, self.special, self.eot])

    def merge(self, piece):
        """A piece's ids, by a heap of (rank, place); `bpe` remembers them."""
        symbols = [*map(bytes_to_unicode().get, piece.encode()), None]  # None: merged away, or the end
        end = len(symbols) - 1  # as an index -1, to the left of the first symbol, is this place, too
        before, after = list(range(-1, end)), [*range(1, end + 1), end]

        def rank_at(place):
            return self.bpe_ranks.get((symbols[place], symbols[after[place]]))
        heap = [(rank, place) for place in range(end) if (rank := rank_at(place)) is not None]
        heapq.heapify(heap)
        while heap:
            rank, place = heapq.heappop(heap)
            if rank_at(place) != rank:
                continue  # a symbol of the pair was merged with another
            gone = after[place]
            symbols[place], symbols[gone] = symbols[place] + symbols[gone], None
            after[place] = after[gone]
            before[after[place]] = place
            for changed in (before[place], place):
                if (rank := rank_at(changed)) is not None:
                    heapq.heappush(heap, (rank, changed))
        return [self.encoder[symbol] for symbol in symbols if symbol is not None]

    def encode(self, text: str, allowed_special: bool = False) -> list[int]:
        """A text's ids; special tokens are text, unless allowed."""
        check_surrogates(text)
        ids, special = [], self.special if allowed_special else {}
        for part in special_pattern(special).split(text):
            if part in special:
                ids.append(special[part])
                continue
            for piece in PATTERN.findall(part):
                ids += self.bpe(piece) if len(piece) <= CACHED_CHARS else self.merge(piece)
        return ids

    def decode(self, ids) -> str:
        """The text of ids, with U+FFFD for parts of characters."""
        return self.decode_bytes(ids).decode('utf-8', self.errors)

    def decode_bytes(self, ids) -> bytes:
        """The bytes of ids, which may end within a character."""
        try:
            return b''.join(map(self.token_bytes.__getitem__, map(operator.index, ids)))
        except (KeyError, TypeError) as error:
            raise InputError(f'token id {error}: expected 0 to {self.n_vocab - 1}; give its model') from None


def get_encoder(model_name: str, models_dir: str = 'models') -> Encoder:  # or raises InputError
    folder = paths.find_model(model_name, models_dir)
    encoder, merges, special = load_vocabulary(folder)
    return Encoder(encoder, merges, names=[f'{folder}/{name}' for name in VOCABULARY_FILES], special=special)


def special_pattern(tokens):
    """Matches tokens as group 1; of several at one place, the longest."""
    longest_first = map(re.escape, sorted(tokens, key=len, reverse=True))
    return re.compile(f'({"|".join(longest_first) or "(?!)"})')


def digest(values) -> str:
    """16 digits that tell values for JSON apart."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()
