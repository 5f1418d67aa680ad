"""Counter-based randomness: a number depends on (seed, keys, index) and on nothing that happened before.

So a draw does not change with the chunk, the thread, the process or the order in which it is asked for, a run resumes
at any step without replaying, and the global random state is never touched.
"""

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Noise:
    """A stream of numbers for one purpose, named by keys.

    Source: the Philox 4x64 generator of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"), in NumPy.

    >>> noise = Noise(0, "order", "train", 3)
    >>> bool((noise.uniform(10)[4:] == noise.uniform(6, start=4)).all())
    True
    """

    seed: int
    keys: tuple[int | str, ...] = ()
    first: int = 0

    def __init__(self, seed: int, *keys: int | str, first: int = 0) -> None:
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "first", first)

    def child(self, *keys: int | str) -> "Noise":
        """The stream for a narrower purpose."""
        return Noise(self.seed, *self.keys, *keys)

    def shifted(self, start: int) -> "Noise":
        """The same stream from index `start` on: what a block of a tensor that starts there is given."""
        return Noise(self.seed, *self.keys, first=self.first + start)

    def raw(self, n: int, start: int = 0) -> np.ndarray:
        """n uint64 numbers, those with index start, start + 1, ..."""
        return self._raw(n, self.first + start)

    def upper(self, n: int, start: int = 0) -> np.ndarray:
        """The upper 16 of the 32 bits of n numbers, uint16: most comparisons need no more; `lower` has the others."""
        start += self.first
        return self._raw((start % 4 + n + 3) // 4, start // 4).view(np.uint16)[start % 4 :][:n]

    def lower(self, index: int) -> int:
        """The lower 16 of the 32 bits of the number with this index."""
        return int(self.child("lower").raw(1, self.first + index)[0] >> np.uint64(48))

    def below(self, n: int, limit: int, start: int = 0) -> np.ndarray:
        """Whether numbers of 32 bits, those with index start, start + 1, ..., are below the limit; bool [n]."""
        if limit == 0:
            return np.zeros(n, dtype=bool)
        upper, (high, low) = self.upper(n, start), divmod(limit - 1, 1 << 16)
        found = upper <= high
        for index in np.flatnonzero(upper == high).tolist():  # one in 65,536
            found[index] = self.lower(start + index) <= low
        return found

    def uniform(self, n: int, start: int = 0) -> np.ndarray:
        """n float64 numbers in [0, 1)."""
        return _unit(self.raw(n, start))

    def normal(self, n: int, start: int = 0) -> np.ndarray:
        """n standard normal float64 numbers (Box and Muller's transform); number i reads uniforms 2 i and 2 i + 1."""
        pairs = _unit(self._raw(2 * n, 2 * (self.first + start))).reshape(n, 2)
        return np.sqrt(-2.0 * np.log1p(-pairs[:, 0])) * np.cos(2.0 * np.pi * pairs[:, 1])

    def integers(self, n: int, high: int, start: int = 0) -> np.ndarray:
        """n int64 numbers in 0 ... high - 1."""
        return np.minimum((self.uniform(n, start) * high).astype(np.int64), high - 1)

    def permutation(self, n: int) -> np.ndarray:
        """0 ... n - 1 in random order, int64."""
        return np.argsort(self.raw(n), kind="stable")

    def torch_seed(self) -> int:
        """A seed for code that insists on a generator (module initialisation, dropout), to be used under fork_rng."""
        return int(self.raw(1)[0] >> np.uint64(1))

    def _raw(self, n: int, start: int) -> np.ndarray:
        generator = np.random.Philox(key=self._key())
        generator.advance(start // 4)  # each counter gives four numbers
        return generator.random_raw(n + start % 4)[start % 4 :]

    def _key(self) -> np.ndarray:
        digest = hashlib.blake2b(repr((self.seed, *self.keys)).encode(), digest_size=16)
        return np.frombuffer(digest.digest(), dtype=np.uint64)


def _unit(raw: np.ndarray) -> np.ndarray:
    """float64 numbers in [0, 1)."""
    return (raw >> np.uint64(11)) * 2.0**-53
