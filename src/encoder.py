"""GPT-2's byte-level byte-pair encoding: text ↔ token ids.

Text is split into pieces (roughly words, each with the space before it); a piece's UTF-8 bytes are symbols, and
neighbouring symbols are merged, the pair that stands first in vocab.bpe first, until no pair of the list is left
(Sennrich et al. 2016, section 3.2; Radford et al. 2019, section 2.2). What remains are the tokens.

    enc = get_encoder('124M')
    enc.encode('Hello world')    # [15496, 995]
    enc.decode([15496, 995])     # 'Hello world'

The ids are those of tiktoken's r50k_base. Which characters are letters and digits is Unicode's to say and grows with
each of its versions: for characters newer than both libraries' tables, the installed `regex` decides.
"""
import heapq
import itertools
import json
import os
import re

import numpy as np
import regex

import paths
from errors import InputError, require

EOT = '<|endoftext|>'
PIECE = regex.compile(r"'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+")
# The same pieces where all of the text is ASCII, found in half the time. re.ASCII keeps \x1c-\x1f out of \s, as regex
# does everywhere.
ASCII_PIECE = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)

PART = 1 << 14  # characters split at a time; short, so that many parts are all ASCII
CACHED_PIECES = 1 << 17  # some 25 MB; a full cache is emptied, and common words are soon back
CACHED_LENGTH = 32  # characters; longer pieces seldom come twice
HEAP_FROM = 40  # bytes in a piece from which a heap beats scanning for the lowest rank
BATCH_FROM = 1 << 14  # bytes in a piece from which merging many places at once beats the heap
NO_RANK = 1 << 62
REMEDY = 'fetch it again with ./download_model.py, or copy it from where the model came from'


def bytes_to_unicode():
    """A dict of 256: each byte's value → the one character that stands for it in encoder.json and vocab.bpe.

    Printable characters of Latin-1 stand for themselves and come first, in the order of GPT-2's ids 0…255; the others
    (controls, space, soft hyphen) take the characters from U+0100 on.
    """
    def shown(byte):
        return 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD)
    hidden = [byte for byte in range(256) if not shown(byte)]
    return {**{byte: chr(byte) for byte in range(256) if shown(byte)},
            **{byte: chr(256 + i) for i, byte in enumerate(hidden)}}


class Encoder:
    """Encodes and decodes with one vocabulary; see the module's docstring.

    encoder: dict of symbol → id; bpe_merges: pairs of symbols, first to be merged first; errors: what decode does with
    bytes that are not UTF-8, as bytes.decode takes it; names: what messages call the two.
    Attributes: encoder, decoder (id → symbol), n_vocab (largest id + 1), eot (the id of <|endoftext|>, or None).
    Raises InputError if the vocabulary or the merges cannot be used.
    """

    def __init__(self, encoder, bpe_merges, errors='replace', names=('encoder.json', 'vocab.bpe')):
        check_vocabulary(encoder, names[0])
        self.encoder = encoder
        self.decoder = {id: symbol for symbol, id in encoder.items()}
        self.errors = errors
        self.n_vocab = max(self.decoder) + 1
        self.eot = encoder.get(EOT)
        symbols = bytes_to_unicode()
        byte_of = {symbol: byte for byte, symbol in symbols.items()}
        self._bytes = {id: symbol_bytes(symbol, byte_of) for symbol, id in encoder.items()}
        self._byte_ids = [encoder[symbols[byte]] for byte in range(256)]
        self._merges = Merges(merge_ids(encoder, bpe_merges, names), self.n_vocab)
        self._cache = PieceCache(self._piece_ids)

    def __len__(self):
        return self.n_vocab

    def encode(self, text, allowed_special=False):  # str -> list of int
        """The token ids of a text. <|endoftext|> in it is text like any other, unless allowed_special: then its id.

        Raises InputError for a lone surrogate (half a UTF-16 pair), which has no UTF-8 form.
        """
        texts = [text]
        if allowed_special and self.eot is not None:
            check_surrogates(text)  # here, so that the offset counts from the start of the whole text
            texts = text.split(EOT)
        ids = []
        for i, each in enumerate(texts):
            if i:
                ids.append(self.eot)
            for some in self.encode_stream([each]):
                ids += some
        return ids

    def encode_stream(self, texts):  # iterable of str -> lists of int
        """Yields, a list at a time, the ids that encode gives for the strings joined; they may be cut anywhere.

        Memory is bounded by the longest piece (a run of letters, of digits, of other signs or of white space), not
        by the text. Raises InputError for a lone surrogate.
        """
        if not self._merges.made:  # every byte is a token: nothing to split
            yield from (list(map(self._byte_ids.__getitem__, part.encode())) for part in checked_parts(texts))
            return
        held, length, enough = [], 0, PART
        for part in checked_parts(texts):
            held.append(part)
            length += len(part)
            if length >= enough:
                pieces, rest = settled_pieces(''.join(held))
                if pieces:
                    yield self._ids(pieces)
                held, length = [rest], len(rest)
                enough = max(PART, 2 * length)  # an endless piece is looked at log n times, not n
        if length:
            yield self._ids(split(''.join(held)))

    def decode(self, ids):  # sequence of int -> str
        """The text of token ids: a list, a NumPy array, any iterable of integers.

        Ids that end within a character decode to U+FFFD there. Raises InputError for what is not an id here.
        """
        ids = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        for kind in set(map(type, ids)):
            if kind is bool or not issubclass(kind, (int, np.integer)):
                bad = next(id for id in ids if type(id) is kind)
                raise InputError(f'token id {bad!r} is not an integer; ids are 0 to {self.n_vocab - 1}')
        try:
            data = b''.join(map(self._bytes.__getitem__, ids))
        except KeyError as error:
            raise InputError(f'token id {error.args[0]} is not in the vocabulary, whose ids are 0 to '
                             f'{self.n_vocab - 1}; check that text and model belong together') from None
        return data.decode('utf-8', errors=self.errors)

    def _ids(self, pieces):
        return list(itertools.chain.from_iterable(map(self._cache.__getitem__, pieces)))

    def _piece_ids(self, piece):
        data = piece.encode()
        if len(data) >= BATCH_FROM and self._merges.ordered:
            return self._merges.merge_batches(np.array(self._byte_ids)[np.frombuffer(data, np.uint8)])
        ids = list(map(self._byte_ids.__getitem__, data))
        return self._merges.merge_short(ids) if len(ids) < HEAP_FROM else self._merges.merge_heap(ids)


class PieceCache(dict):
    """Piece → ids, computed when first asked for; bounded. A dict so that `map` looks words up without Python code."""

    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def __missing__(self, piece):
        ids = tuple(self.compute(piece))
        if len(piece) <= CACHED_LENGTH:
            if len(self) >= CACHED_PIECES:
                self.clear()
            self[piece] = ids
        return ids


# Splitting


def split(text):  # str -> list of str
    return (ASCII_PIECE if text.isascii() else PIECE).findall(text)


def settled_pieces(text):  # -> pieces, the rest of the text
    """The pieces at the start of a text that stay as they are whatever may follow the text, and what comes after them.

    No piece depends on more than two characters past its end (`'` on whether `ll` follows; letters, digits and white
    space on one), and none on what precedes it: so all that end two characters before the end are settled.
    """
    pieces, rest = split(text), ''
    while pieces and len(rest) < 2:
        rest = pieces.pop() + rest
    return pieces, rest


def checked_parts(texts):
    """The strings again, in parts of at most PART characters; InputError at a lone surrogate."""
    seen = 0
    for text in texts:
        for start in range(0, len(text), PART):
            part = text[start:start + PART]
            check_surrogates(part, seen)
            seen += len(part)
            yield part


def check_surrogates(text, seen=0):
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f'the character at offset {seen + error.start} is U+{ord(text[error.start]):04X}, half of a '
                         'UTF-16 pair, or a byte that was not UTF-8; remove it, or read the text with its own '
                         'encoding') from None


# Merging. All three ways give what this rule gives: merge the pair of lowest rank, of these the leftmost; repeat.


class Merges:
    """Pairs of ids to be merged. triples: (first id, second id, id of the two merged), by rank; all ids < n_vocab."""

    def __init__(self, triples, n_vocab):
        self.base = n_vocab + 1  # a pair's key is first * base + second; the id n_vocab is nobody's
        self.made = [made for _, _, made in triples]
        self.ranks = {first * self.base + second: rank for rank, (first, second, _) in enumerate(triples)}
        keys = np.array([*self.ranks, np.iinfo(np.int64).max], np.int64)  # the last: every search ends inside
        order = np.argsort(keys)
        self.sorted_keys = keys[order]
        self.sorted_ranks = np.array([*self.ranks.values(), NO_RANK], np.int64)[order]
        self.ordered = self._is_ordered()

    def _is_ordered(self):
        """Whether each symbol's own merges stand before every merge that uses it, as in all trained merges.

        Then merging a pair never brings forth a pair of lower rank, and all places of a pair can be merged at once.
        """
        keys, ranks = np.array(list(self.ranks), np.int64), np.array(list(self.ranks.values()), np.int64)
        made_at = np.full(self.base, -1, np.int64)
        np.maximum.at(made_at, np.array(self.made, np.int64)[ranks], ranks)
        return bool(np.all(made_at[keys // self.base] < ranks) and np.all(made_at[keys % self.base] < ranks))

    def _pair_ranks(self, ids):
        """The rank of each id with the next, NO_RANK where they do not merge; the last has no next."""
        get, base = self.ranks.get, self.base
        return [get(first * base + second, NO_RANK) for first, second in itertools.pairwise(ids)] + [NO_RANK]

    def merge_short(self, ids):  # list -> list, changed in place
        """By scanning for the lowest rank: least work where ids are few, quadratic where they are many."""
        get, base = self.ranks.get, self.base
        ranks = self._pair_ranks(ids)
        while (rank := min(ranks)) < NO_RANK:
            i = ranks.index(rank)
            ids[i:i + 2] = [self.made[rank]]
            del ranks[i]
            if i + 1 < len(ids):
                ranks[i] = get(ids[i] * base + ids[i + 1], NO_RANK)
            if i:
                ranks[i - 1] = get(ids[i - 1] * base + ids[i], NO_RANK)
        return ids

    def merge_heap(self, ids):  # list -> list, changed in place
        """By a heap of (rank, place): n log n, and right for merges in any order."""
        get, base, n = self.ranks.get, self.base, len(ids)
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))
        ranks = self._pair_ranks(ids)
        heap = [rank * n + i for i, rank in enumerate(ranks) if rank < NO_RANK]
        heapq.heapify(heap)
        while heap:
            rank, i = divmod(heapq.heappop(heap), n)
            if ranks[i] != rank:
                continue  # one of the pair has been merged with its other neighbour since
            ids[i] = self.made[rank]
            ranks[i] = ranks[after[i]] = NO_RANK
            after[i] = after[after[i]]
            if after[i] < n:
                before[after[i]] = i
            for left in (before[i], i):
                if left >= 0 and after[left] < n:
                    ranks[left] = get(ids[left] * base + ids[after[left]], NO_RANK)
                    if ranks[left] < NO_RANK:
                        heapq.heappush(heap, ranks[left] * n + left)
        return [ids[i] for i in chain_places(after, n)]

    def merge_batches(self, ids):  # array -> list; only where ordered
        """By merging all places of the lowest rank at once, as arrays: for very long pieces."""
        n = len(ids)
        ids = np.append(ids, self.base - 1).astype(np.int64)  # nobody's id at place n, which is also place -1
        before, after = np.arange(-1, n), np.minimum(np.arange(1, n + 2), n)
        waiting = {}  # rank -> arrays of places that had a pair of that rank when they were put here
        heap = []
        self._wait(waiting, heap, ids, after, np.arange(n))
        while heap:
            rank = heapq.heappop(heap)
            places = waiting.pop(rank)
            places = places[0] if len(places) == 1 else np.sort(np.concatenate(places))
            places = places[self._rank_array(ids[places], ids[after[places]]) == rank]  # the others have merged since
            if not len(places):
                continue
            places = without_overlaps(places, after)
            gone = after[places]
            ids[places], ids[gone] = self.made[rank], self.base - 1
            after[places] = after[gone]
            before[after[places]] = places
            self._wait(waiting, heap, ids, after, sorted_union(before[places], places))
        return ids[:n][ids[:n] < self.base - 1].tolist()

    def _rank_array(self, first, second):  # arrays of ids -> array of ranks
        keys = first * self.base + second
        at = np.searchsorted(self.sorted_keys, keys)
        return np.where(self.sorted_keys[at] == keys, self.sorted_ranks[at], NO_RANK)

    def _wait(self, waiting, heap, ids, after, places):
        """Puts places among those that wait for the rank of their pair; places ascend."""
        ranks = self._rank_array(ids[places], ids[after[places]])
        places, ranks = places[ranks < NO_RANK], ranks[ranks < NO_RANK]
        order = np.argsort(ranks, kind='stable')  # stable: places still ascend within a rank
        places, ranks = places[order], ranks[order]
        starts = np.flatnonzero(first_of_equals(ranks))
        for rank, some in zip(ranks[starts].tolist(), np.split(places, starts[1:]), strict=False):
            if rank not in waiting:
                waiting[rank] = []
                heapq.heappush(heap, rank)
            waiting[rank].append(some)


def chain_places(after, n):
    i = 0
    while i < n:
        yield i
        i = after[i]


def sorted_union(some, others):  # both ascend; np.union1d hashes, which takes six times as long
    both = np.sort(np.concatenate([some, others]), kind='stable')
    return both[first_of_equals(both)]


def first_of_equals(ascending):  # -> bool array: True where a value is not that before it
    return np.append(True, ascending[1:] != ascending[:-1])[:len(ascending)]


def without_overlaps(places, after):
    """Of pairs that overlap (in `aaa`, first with second and second with third) those a merge from the left takes."""
    follows = np.zeros(len(places), bool)
    follows[1:] = after[places[:-1]] == places[1:]
    if not follows.any():
        return places
    index = np.arange(len(places))
    run_start = np.maximum.accumulate(np.where(follows, 0, index))
    return places[(index - run_start) % 2 == 0]


# Loading


def get_encoder(model_name, models_dir='models'):
    """The Encoder of a model's encoder.json and vocab.bpe; InputError if they are missing or damaged."""
    directory = paths.model_dir(model_name, models_dir)
    names = [os.path.join(directory, name) for name in ('encoder.json', 'vocab.bpe')]
    return Encoder(read_vocabulary(names[0]), read_merges(names[1]), names=names)


def read_utf8(path):
    try:
        with open(path, 'rb') as file:
            return file.read().decode('utf-8')
    except FileNotFoundError:
        raise InputError(f'{path} is missing; {REMEDY}') from None
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is not UTF-8 at byte {error.start}; {REMEDY}') from None


def read_vocabulary(path):  # -> dict of symbol → id, not yet checked further
    text = read_utf8(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f'{path} is not JSON: {error}; {REMEDY}') from None


def read_merges(path):  # -> list of tuples of symbols
    """The merges of a vocab.bpe: a line each, two symbols with a space between; a first line #version… is a comment."""
    lines = read_utf8(path).replace('\r\n', '\n').rstrip('\n').split('\n')
    start = 1 if lines[0].startswith('#version') or lines == [''] else 0
    merges = [tuple(line.split(' ')) for line in lines[start:]]
    for number, pair in enumerate(merges, start + 1):
        if len(pair) != 2 or not all(pair):
            raise InputError(f'{path} line {number} is not two symbols with a space between but '
                             f'{" ".join(pair)[:80]!r}; {REMEDY}')
    return merges


def check_vocabulary(encoder, name):
    """InputError unless encoder is a dict of str → id, all ids different, with a symbol for each of the 256 bytes."""
    require(isinstance(encoder, dict), f'{name} must hold an object of symbol: id, not a {type(encoder).__name__}; '
            f'{REMEDY}')
    for symbol, id in encoder.items():
        if type(id) is not int or not 0 <= id < 2**31:
            raise InputError(f'{name} gives {symbol!r} the id {str(id)[:40]!r}, which is not a whole number from 0 to '
                             f'{2**31 - 1}; {REMEDY}')
    missing = [symbol for symbol in bytes_to_unicode().values() if symbol not in encoder]
    require(not missing, f'{name} lacks {len(missing)} of the 256 byte symbols, the first {missing[:1]}; {REMEDY}')
    owners = {}
    for symbol, id in encoder.items():
        if owners.setdefault(id, symbol) != symbol:
            raise InputError(f'{name} gives the id {id} to both {owners[id]!r} and {symbol!r}; {REMEDY}')


def merge_ids(encoder, merges, names):  # -> list of (first id, second id, merged id)
    """The merges as ids; InputError where a symbol, or the two joined, is not in the vocabulary."""
    triples = []
    for number, pair in enumerate(merges, 1):
        first, second = pair
        try:
            triples.append((encoder[first], encoder[second], encoder[first + second]))
        except KeyError as error:
            raise InputError(f'{names[1]}: merge {number}, {" ".join(pair)!r}, needs the symbol {error.args[0]!r}, '
                             f'which {names[0]} does not have; take both files from the same model') from None
    return triples


def symbol_bytes(symbol, byte_of):  # str -> bytes
    """The bytes that a symbol stands for; one that is not spelt in byte symbols (an added token) stands for itself."""
    try:
        return bytes(map(byte_of.__getitem__, symbol))
    except KeyError:
        return symbol.encode('utf-8', 'surrogatepass')
