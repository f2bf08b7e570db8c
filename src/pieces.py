"""Text → pieces → ids, by arrays: no Python object is made for a piece.

A piece is a match of

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

(the pattern of Radford et al.'s encoder.py), with the classes of the module `regex`, where \\x1c to \\x1f are not white
space. Every character belongs to a piece, and a piece's ids depend on its bytes alone: they are computed once and
remembered.
"""
import functools

import numpy as np
import regex

KIND_RUNS = regex.compile(r'(\s+)|(\p{L}+)|(\p{N}+)')
# Read backwards: the last place where, whatever stands around it, one piece ends and another starts.
SAFE_CUT = regex.compile(r'(?r)(?<=\S)(?=\s)|(?<=\p{L})(?=\P{L})|(?<=\p{N})(?=\P{N})')
SPACE = 1  # a character's kind is the number of the group above that it matches, or 0
TIERS = (1, 7, 1 << 17), (8, 15, 1 << 17), (16, 63, 1 << 15)  # pieces of how many bytes, slots; 7 MB and the ids
PROBES = 16  # slots in which a piece may stand
PADDING = 64  # bytes that may be read past the end of a text: the words of the last tier
FACTOR = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio (Knuth, The Art of Computer Programming, volume 3, 6.4)


# Splitting


def split(text, whole=True, starts=()):  # str, not empty -> uint8 [n_bytes + PADDING], int64 [n_pieces + 1], str
    """The UTF-8 bytes of a text, the places in them where its pieces start and the last ends, and the text after that.

    Unless whole, pieces are left that may be others once more text follows. No piece depends on more than two
    characters past its end (`'` on whether `ll` follows; letters, digits and white space on one), and none on what
    precedes it: so all that end two characters before the end are settled.
    starts: where in it, after its first character, other texts start, which are split as if each stood alone.
    """
    data = np.frombuffer(text.encode() + bytes(PADDING), np.uint8)
    codes = data[:len(text)] if text.isascii() else np.frombuffer(text.encode('utf-32-le'), '<u4')
    bounds = np.append(piece_starts(codes, np.asarray(starts, np.int64)), len(codes))
    if not whole:
        bounds = bounds[:max(np.searchsorted(bounds, len(codes) - 2, 'right'), 1)]
    rest = text[bounds[-1]:]
    if not text.isascii():
        bounds = np.flatnonzero(data & 0xC0 != 0x80)[bounds]  # characters start where a byte does not go on with one
    return data, bounds, rest


def piece_starts(codes, text_starts):  # uint8 or uint32 [n], code points; int64 [n_texts - 1] -> int64 [n_pieces]
    kinds = kinds_below(min(1 << int(codes.max()).bit_length(), 0x110000)).take(codes)
    starts = np.append(True, kinds[1:] != kinds[:-1])
    starts[text_starts] = True
    # White space before something else leaves its last character: a piece of its own, or, if ' ', part of what follows.
    last_space = starts[1:] & (kinds[:-1] == SPACE)
    last_space[text_starts - 1] = False
    starts[:-1] |= last_space
    starts[1:] ^= last_space & (codes[:-1] == ord(' '))
    # A contraction counts where `'` starts a piece; what it leaves of the letters is the next.
    quotes = np.flatnonzero((codes == ord("'")) & starts)
    lengths = contraction_lengths(codes, quotes)
    text_ends = np.append(text_starts, len(codes))
    lengths[quotes + lengths > text_ends[np.searchsorted(text_starts, quotes, 'right')]] = 0
    quotes, ends = quotes[lengths > 0], (quotes + lengths)[lengths > 0]
    starts[quotes + 1] = False
    starts[ends[ends < len(codes)]] = True
    return np.flatnonzero(starts)


def contraction_lengths(codes, quotes):  # -> int64 [n_quotes]: 2, 3, or 0 where there is none
    first, second = (codes.take(quotes + ahead, mode='clip') for ahead in (1, 2))

    def are(letters, *choices):
        return functools.reduce(np.logical_or, [letters == ord(choice) for choice in choices])
    short = are(first, 's', 't', 'm', 'd')
    long = (are(first, 'r', 'v') & are(second, 'e') | are(first, 'l') & are(second, 'l')) & (quotes < len(codes) - 2)
    return 2 * short + 3 * long


def safe_cut(text: str) -> int:
    """The last place within a text where it can be cut and no piece changes, whatever comes before and after; or -1.

    It is between a letter or a digit and what is not, or before white space: no piece goes on there. Of three runs (of
    white space, letters, digits, or other characters) two have such a place between them.
    """
    found = SAFE_CUT.search(text)
    return found.start() if found else -1


@functools.cache
def kinds_below(limit):  # -> uint8 [limit]
    """The kind of each character below a code point. All of Unicode takes 30 ms, so only what texts need is made."""
    characters = np.arange(limit, dtype='<u4').tobytes().decode('utf-32-le', 'surrogatepass')
    kinds = np.zeros(limit, np.uint8)
    for run in KIND_RUNS.finditer(characters):
        kinds[run.start():run.end()] = run.lastindex
    return kinds


# Looking up


class PieceCache:
    """The ids of pieces: looked up, and merged (by a merges.Merges) where they are not remembered from before."""

    def __init__(self, merges):
        self.merges = merges
        self.tiers = [Tier(*each) for each in TIERS]

    def ids(self, data, bounds):  # as split gives them -> int32 [n_tokens], int64 [n_pieces]: how many ids each has
        starts, lengths = bounds[:-1], np.diff(bounds)
        first, count = np.zeros((2, len(starts)), np.int64)  # where a piece's ids start in the pools, how many they are
        pools, pooled = [np.zeros(0, np.int32)], 0
        for tier in self.tiers:
            some = np.flatnonzero((lengths >= tier.shortest) & (lengths <= tier.longest))
            if not len(some):
                continue
            slots = tier.slots(tier.keys(data, starts[some], lengths[some]))
            new = tier.new(slots)
            if len(new):
                tier.store(slots[new], *self.merges.merge(data, starts[some[new]], lengths[some[new]]))
            first[some], count[some] = tier.first[slots] + pooled, tier.count[slots]
            pools.append(tier.pool)
            pooled += len(tier.pool)
        rest = np.flatnonzero(count == 0)  # too long, or no slot was free
        if len(rest):
            ids, rest_first, count[rest] = self.merges.merge(data, starts[rest], lengths[rest])
            first[rest] = rest_first + pooled
            pools.append(ids)
        return gathered(np.concatenate(pools), first, count), count


class Tier:
    """Remembers the ids of pieces of like length, in a hash table (open addressing, linear probing).

    A key is as many words as hold the longest piece and one byte: the piece's bytes, then zeros, and as its last byte
    the length, in which pieces that end in NULs differ. Keys are compared whole. Memory is bounded: a table more than
    half full is emptied; common pieces are soon back.
    """

    def __init__(self, shortest, longest, n_slots):  # longest: in bytes, one less than some words have
        self.shortest, self.longest, self.n_slots = shortest, longest, n_slots
        words = (longest + 1) // 8
        self.table = np.zeros((words, n_slots), np.uint64)  # last word 0: free
        self.first = np.zeros(n_slots + 1, np.int32)  # of a slot's ids in the pool
        self.count = np.zeros(n_slots + 1, np.uint8)  # how many they are; the last slot stands for none
        self.pool, self.stored = np.zeros(0, np.int32), 0
        self.factors = [np.uint64(pow(FACTOR, 2 * word + 1, 1 << 64)) for word in range(words)]
        self.shift = np.uint64(65 - n_slots.bit_length())
        places = np.arange(8 * words)
        masks = np.where(places < places[:, None], 0xFF, 0).astype(np.uint8)  # [length, byte]
        self.masks = masks.view('<u8').astype(np.uint64).T.copy()  # [word, length]

    def keys(self, data, starts, lengths):  # -> uint64 [words, n]
        word_at = np.ndarray(len(data) - 7, '<u8', data, strides=(1,))  # the eight bytes from each place on
        keys = np.empty((len(self.masks), len(starts)), np.uint64)
        for word, mask in enumerate(self.masks):
            np.bitwise_and(word_at[starts + 8 * word], mask[lengths], out=keys[word])
        keys[-1] |= lengths.astype(np.uint64) << np.uint64(56)
        return keys

    def slots(self, keys):  # uint64 [words, n] -> int64 [n]
        """The slots of keys, those not in the table having been put there; n_slots if none was free near by.

        "Near by" bounds the time that pieces made to collide can take.
        """
        if self.stored > self.n_slots // 2:
            self.table.fill(0)
            self.count.fill(0)
            self.pool, self.stored = self.pool[:0].copy(), 0
        hashes = sum(words * factor for words, factor in zip(keys, self.factors, strict=True))
        slots = (hashes >> self.shift).view(np.int64)
        waiting = np.flatnonzero(self._differ(slots, keys))
        for _ in range(PROBES):
            if not len(waiting):
                return slots
            at, some = slots[waiting], keys[:, waiting]
            free = self.table[-1].take(at) == 0
            self.table[:, at[free]] = some[:, free]  # of several for one slot the last stays, the others go on
            missed = self._differ(at, some)
            waiting = waiting[missed]
            slots[waiting] = (at[missed] + 1) % self.n_slots
        slots[waiting] = self.n_slots
        return slots

    def _differ(self, slots, keys):  # -> bool [n]
        return functools.reduce(np.logical_or, [stored.take(slots) != words
                                                for stored, words in zip(self.table, keys, strict=True)])

    def new(self, slots):  # -> int64 [n_new]: for each slot without ids, the index of one piece that has it
        new = np.flatnonzero((self.count[slots] == 0) & (slots < self.n_slots))
        self.first[slots[new]] = new
        return new[self.first[slots[new]] == new]

    def store(self, slots, ids, first, count):  # as Merges.merge gives them
        self.first[slots], self.count[slots] = first + len(self.pool), count
        self.pool = np.append(self.pool, ids)
        self.stored += len(slots)


def gathered(pool, first, count):  # -> pool[first[i]:first[i] + count[i]] for each i, as one array
    ends = np.cumsum(count)
    begins = ends - count
    tokens = np.empty(count.sum(), pool.dtype)
    tokens[begins] = pool.take(first)
    more = np.flatnonzero(count > 1)  # few in ordinary text
    begins, first, count = begins[more] + 1, first[more] + 1, count[more] - 1
    steps = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    tokens[np.repeat(begins, count) + steps] = pool.take(np.repeat(first, count) + steps)
    return tokens
