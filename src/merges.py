"""Merging: the ids of a piece's bytes → the ids of its tokens.

The rule (Sennrich et al. 2016, section 3.2): merge the pair of lowest rank, of these the leftmost; repeat until no pair
of the list is left. It is followed in three ways, none of which is fast for all pieces: many short pieces side by side
(merge_rows), one with a heap (merge_heap), a very long one by all places of a pair at once (merge_batches).
"""
import heapq
import itertools
import secrets

import numpy as np

NO_RANK = (1 << 31) - 1
NO_BYTE = 256
ROW_WIDTHS = (0, 8, 16, 32, 64, 128, 256)  # a row's work grows with the square of its width
FEW = 24  # pieces of like length from which merging side by side beats one by one
ROW_CELLS = 1 << 16  # merged side by side; some 3 MB
BATCH_FROM = 1 << 14  # bytes in a piece from which merging many places at once beats the heap
FACTORS = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03  # of the two hashes: odd, and far from simple fractions of 2^64
TURNS = 64  # for keys to find their places before the table is made larger


class Merges:
    """Pairs of ids to be merged.

    triples: (first id, second id, id of the two merged), by rank; byte_ids: the 256 ids of the bytes; all < n_vocab.
    """

    def __init__(self, triples, byte_ids, n_vocab):
        self.nobody = n_vocab  # an id that no pair has
        self.byte_ids = np.array([*byte_ids, self.nobody], np.int64)
        self.base = n_vocab + 1  # a pair's key is first * base + second
        self.made = np.array([made for _, _, made in triples], np.int64)  # by rank
        self.ranks = {first * self.base + second: rank for rank, (first, second, _) in enumerate(triples)}
        keys, ranks = np.array(list(self.ranks), np.int64), np.array(list(self.ranks.values()), np.int32)
        self.table = PairTable(keys, ranks)
        self.byte_pair_ranks = self.pair_ranks(np.repeat(self.byte_ids, 257), np.tile(self.byte_ids, 257))
        self.ordered = self._is_ordered(keys, ranks)

    def _is_ordered(self, keys, ranks):
        """Whether each symbol's own merges stand before every merge that uses it, as in all trained merges.

        Then merging a pair never brings forth a pair of lower rank, and all places of a pair can be merged at once.
        """
        # By the places of ids among those in use: an array up to the largest id could be of any size.
        _, places = np.unique(np.concatenate([keys // self.base, keys % self.base, self.made[ranks]]),
                              return_inverse=True)
        first, second, made = places.reshape(3, -1)
        made_at = np.full(places.size, -1, np.int32)
        np.maximum.at(made_at, made, ranks)
        return bool(np.all(made_at[first] < ranks) and np.all(made_at[second] < ranks))

    def merge(self, data, starts, lengths):  # uint8 [n_bytes], int [n], int [n] -> int32 [n_tokens], int [n], int [n]
        """The ids of pieces, and for each piece, where among them its own start and how many they are.

        data: the bytes of a text; starts, lengths: of the pieces in it, at least one and none empty.
        """
        found = []  # (indices of pieces, their ids, how many each has)
        for shortest, width in itertools.pairwise(ROW_WIDTHS):
            some = np.flatnonzero((lengths >= shortest) & (lengths < width))
            if len(some) < FEW:
                found += [self._alone(data, starts, lengths, i) for i in some]
                continue
            for part in np.array_split(some, -(-len(some) * width // ROW_CELLS)):
                found.append((part, *self.merge_rows(byte_rows(data, starts[part], lengths[part], width))))
        found += [self._alone(data, starts, lengths, i) for i in np.flatnonzero(lengths >= ROW_WIDTHS[-1])]
        pieces, ids, counts = map(np.concatenate, zip(*found, strict=True))
        first, count = np.empty((2, len(starts)), np.int64)
        first[pieces], count[pieces] = np.cumsum(counts) - counts, counts
        return ids.astype(np.int32), first, count

    def _alone(self, data, starts, lengths, i):  # -> what `merge` has for many pieces, for the one of index i
        ids = self.byte_ids[data[starts[i]:starts[i] + lengths[i]]]
        merged = self.merge_batches(ids) if len(ids) >= BATCH_FROM and self.ordered else self.merge_heap(ids.tolist())
        return [i], merged, [len(merged)]

    def pair_ranks(self, first, second):  # int64 [n], int64 [n] -> int32 [n], NO_RANK where the two do not merge
        return self.table.ranks_of(first * self.base + second)

    def merge_rows(self, rows):  # int64 [n, width] of bytes, NO_BYTE after the last -> int64 [n_tokens], int [n]
        """All rows at once, each its own best pair: for many short pieces.

        At least the last column must be NO_BYTE. Returns the ids of all rows, and how many each has.
        """
        n, width = rows.shape
        data = rows.reshape(-1)  # so places are counted through all rows
        ids = self.byte_ids.take(data)
        ranks = np.append(self.byte_pair_ranks.take(data[:-1] * 257 + data[1:]), NO_RANK)  # of the pair at a place
        before, after = np.arange(-1, ids.size - 1), np.arange(1, ids.size + 1)
        row_ranks, going = ranks.reshape(n, width), np.arange(n)
        while len(going):
            places = going * width + row_ranks.take(going, axis=0).argmin(1)  # argmin: the leftmost
            found = ranks.take(places)
            merging = np.flatnonzero(found < NO_RANK)
            going, places, found = going.take(merging), places.take(merging), found.take(merging)
            gone = after.take(places)
            left, right = before.take(places), after.take(gone)
            after[places], before[right] = right, places
            made = self.made.take(found)
            ids[places], ids[gone], ranks[gone] = made, self.nobody, NO_RANK
            ranks[left], ranks[places] = self.pair_ranks(ids.take(left), made), self.pair_ranks(made, ids.take(right))
        kept = ids != self.nobody
        return ids[kept], kept.reshape(n, width).sum(1)

    def merge_heap(self, ids):  # list -> list, changed in place
        """By a heap of (rank, place): n log n, and right for merges in any order."""
        get, made, base, n = self.ranks.get, self.made.item, self.base, len(ids)
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))
        ranks = [get(first * base + second, NO_RANK) for first, second in itertools.pairwise(ids)] + [NO_RANK]
        heap = [rank * n + i for i, rank in enumerate(ranks) if rank < NO_RANK]
        heapq.heapify(heap)
        while heap:
            rank, i = divmod(heapq.heappop(heap), n)
            if ranks[i] != rank:
                continue  # one of the pair has been merged with its other neighbour since
            ids[i] = made(rank)
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

    def merge_batches(self, ids):  # int64 [n] -> int64 [n_tokens]; only where ordered
        """By merging all places of the lowest rank at once, as arrays: for very long pieces."""
        n = len(ids)
        ids = np.append(ids, self.nobody)  # at place n, which is also place -1
        before, after = np.arange(-1, n), np.minimum(np.arange(1, n + 2), n)
        waiting = {}  # rank -> arrays of places that had a pair of that rank when they were put here
        heap = []
        self._wait(waiting, heap, ids, after, np.arange(n))
        while heap:
            rank = heapq.heappop(heap)
            places = waiting.pop(rank)
            places = places[0] if len(places) == 1 else np.sort(np.concatenate(places))
            places = places[self.pair_ranks(ids[places], ids[after[places]]) == rank]  # the others have merged since
            if not len(places):
                continue
            places = without_overlaps(places, after)
            gone = after[places]
            ids[places], ids[gone] = self.made[rank], self.nobody
            after[places] = after[gone]
            before[after[places]] = places
            self._wait(waiting, heap, ids, after, sorted_union(before[places], places))
        return ids[ids != self.nobody]

    def _wait(self, waiting, heap, ids, after, places):
        """Puts places among those that wait for the rank of their pair; places ascend."""
        ranks = self.pair_ranks(ids[places], ids[after[places]])
        places, ranks = places[ranks < NO_RANK], ranks[ranks < NO_RANK]
        order = np.argsort(ranks, kind='stable')  # stable: places still ascend within a rank
        places, ranks = places[order], ranks[order]
        starts = np.flatnonzero(first_of_equals(ranks))
        for rank, some in zip(ranks[starts].tolist(), np.split(places, starts[1:]), strict=False):
            if rank not in waiting:
                waiting[rank] = []
                heapq.heappush(heap, rank)
            waiting[rank].append(some)


def byte_rows(data, starts, lengths, width):  # -> int64 [n, width]: each piece's bytes, then NO_BYTE
    columns = np.arange(width)
    inside = columns < lengths[:, None]
    return np.where(inside, data[np.where(inside, starts[:, None] + columns, 0)].astype(np.int64), NO_BYTE)


class PairTable:
    """Keys of pairs → ranks, many in one call: a hash table in which a key stands in one of two places.

    So a look-up takes a fixed number of steps, and no loop (cuckoo hashing, Pagh and Rodler 2004).
    """

    def __init__(self, keys, ranks):  # int64 [n], all different and none negative; int32 [n]
        n = len(keys)
        for attempt in itertools.count():
            # Less than half of the places are taken. Keys that were made to collide do so in larger tables, too, but
            # not under factors that nobody knew.
            bits = 1 + n.bit_length() + min(attempt, 2) + attempt // 8
            self.factors = FACTORS if attempt < 3 else [secrets.randbits(64) | 1 for _ in FACTORS]
            self.shift, homeless = np.uint64(64 - bits), np.arange(n)
            places = np.stack(list(self._places(keys)))  # [2, n]
            owner, choice = np.full(1 << bits, n), np.zeros(n, np.int64)
            for _ in range(TURNS):
                owner[places[choice[homeless], homeless]] = homeless  # whoever was there goes to its other place
                chosen = np.where(choice, places[1], places[0])
                homeless = np.flatnonzero(owner[chosen] != np.arange(n))
                choice[homeless] ^= 1
            if not len(homeless):
                break
        self.keys, self.ranks = np.append(keys, -1)[owner], np.append(ranks, NO_RANK)[owner]

    def _places(self, keys):  # int64 [n] -> twice int64 [n]
        for factor in self.factors:
            yield (keys.view(np.uint64) * np.uint64(factor) >> self.shift).view(np.int64)

    def ranks_of(self, keys):  # int64 [n] -> int32 [n], NO_RANK for those that are not there
        found = [np.where(self.keys.take(places) == keys, self.ranks.take(places), NO_RANK)
                 for places in self._places(keys)]
        return np.minimum(*found)


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
