"""How near the cheap engines' updates are to the exact one's: the measure, and what the page says of it."""

from benchmarks.balancing import fidelity, page


def test_conflicting_tasks_tell_weights_apart() -> None:
    found = fidelity.measure(steps=3)
    mgda = found["rules"]["mgda"]["cosines"]
    assert mgda["equal weights"]["median"] < 0.5
    assert all(mgda[name]["median"] > mgda["equal weights"]["median"] for name in ("representation", "subset"))
    assert mgda["interval"]["lowest"] < 1
    said = page._fidelity({"fidelity": found})
    assert fidelity.PROBLEM in said
    conflicts = 100 * found["rules"]["mgda"]["conflicts"]
    assert f"`mgda`, where {conflicts:.0f} % of the pairs conflict: `representation` " in said
