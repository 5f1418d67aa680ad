"""Numbers by index: the halves of 32 bits, and comparisons that need only one of them."""

import numpy as np

from polytask.core.noise import Noise


def test_below_compares_all_of_a_number_wherever_it_is_cut() -> None:
    noise, n = Noise(3, "below"), 200_000
    whole = noise.upper(50).astype(np.int64) << 16 | np.array([noise.lower(index) for index in range(50)])
    for limit in (0, 1, 2**31, int(whole[7]), int(whole[7]) + 1, 2**32):
        found = noise.below(n, limit)
        assert found[:50].tolist() == (whole < limit).tolist()
        pieces = [noise.below(stop - start, limit, start) for start, stop in ((0, 3), (3, 90_001), (90_001, n))]
        assert np.array_equal(np.concatenate(pieces), found)
        assert np.array_equal(noise.shifted(41).below(1000, limit), found[41:1041])
        assert abs(found.mean() - limit / 2**32) < 5 * np.sqrt(0.25 / n)
