"""Counter-based random numbers: pure functions of a key and a counter, in any order.

A key (made from a seed, an epoch, a row) and a counter (a position) give 64 random bits, by the
mixing function of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
generators", https://doi.org/10.1145/2660193.2660195).
"""

import numpy as np

from bert_pipeline.ragged import Array, FloatArray, Int64Array, UInt64Array

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def make_seed(*parts: int | str) -> np.random.SeedSequence:
    """A seed made from integers >= 0 and from strings that name the purpose.

    Different purposes get independent random numbers from the same integers.
    """
    return np.random.SeedSequence(
        [int.from_bytes(p.encode(), "little") if isinstance(p, str) else p for p in parts]
    )


def make_key(*parts: int | str) -> UInt64Array:
    """A key made from such parts; uint64 of shape (1,)."""
    key: UInt64Array = make_seed(*parts).generate_state(1, np.uint64).astype(np.uint64)
    return key


def random_bits(key: UInt64Array, counter: Array) -> UInt64Array:
    """64 random bits for each counter; uint64, shapes broadcast."""
    bits: UInt64Array = key + (counter.astype(np.uint64) + np.uint64(1)) * GOLDEN
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def as_share(bits: UInt64Array) -> FloatArray:
    """Random bits as floats, uniform in [0, 1)."""
    shares: FloatArray = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return shares


def as_choice(bits: UInt64Array, count: int) -> Int64Array:
    """Random bits as integers, uniform in 0..count - 1, for counts below 2^32."""
    return ((bits >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64)


class Permutation:
    """A random permutation of 0..count - 1 that needs no memory.

    A Feistel network of six rounds (Luby & Rackoff 1988, https://doi.org/10.1137/0217022: four
    rounds suffice for strong pseudorandomness) with cycle walking to stay below `count` (Black &
    Rogaway 2002, https://doi.org/10.1007/3-540-45760-7_9).
    """

    ROUNDS = 6

    def __init__(self, count: int, *seed: int | str) -> None:
        self._count = count
        self._half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = make_seed("order", *seed).generate_state(self.ROUNDS, np.uint64)

    def place(self, numbers: Int64Array) -> Int64Array:
        """The place of each number in the permutation; int64 of the same shape."""
        return self._walk(numbers, forward=True)

    def at(self, places: Int64Array) -> Int64Array:
        """The numbers at these places: the inverse of `place`."""
        return self._walk(places, forward=False)

    def _walk(self, numbers: Int64Array, forward: bool) -> Int64Array:
        found = self._apply_rounds(numbers.astype(np.uint64), forward)
        while len(outside := np.flatnonzero(found >= np.uint64(self._count))):
            found[outside] = self._apply_rounds(found[outside], forward)
        return found.astype(np.int64)

    def _apply_rounds(self, numbers: UInt64Array, forward: bool) -> UInt64Array:
        left = numbers >> self._half
        right = numbers & self._mask
        for key in self._keys if forward else self._keys[::-1]:
            if forward:
                left, right = right, left ^ (random_bits(key, right) & self._mask)
            else:
                left, right = right ^ (random_bits(key, left) & self._mask), left
        return (left << self._half) | right
