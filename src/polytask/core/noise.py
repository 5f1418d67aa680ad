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

    def __init__(self, seed: int, *keys: int | str) -> None:
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "keys", keys)

    def child(self, *keys: int | str) -> "Noise":
        """The stream for a narrower purpose."""
        return Noise(self.seed, *self.keys, *keys)

    def raw(self, n: int, start: int = 0) -> np.ndarray:
        """n uint64 numbers, those with index start, start + 1, ..."""
        generator = np.random.Philox(key=self._key())
        generator.advance(start // 4)  # each counter gives four numbers
        return generator.random_raw(n + start % 4)[start % 4 :]

    def uniform(self, n: int, start: int = 0) -> np.ndarray:
        """n float64 numbers in [0, 1)."""
        return (self.raw(n, start) >> np.uint64(11)) * 2.0**-53

    def normal(self, n: int, start: int = 0) -> np.ndarray:
        """n standard normal float64 numbers (Box and Muller's transform); number i reads uniforms 2 i and 2 i + 1."""
        pairs = self.uniform(2 * n, 2 * start).reshape(n, 2)
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

    def _key(self) -> np.ndarray:
        digest = hashlib.blake2b(repr((self.seed, *self.keys)).encode(), digest_size=16)
        return np.frombuffer(digest.digest(), dtype=np.uint64)
