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
    assert f"mgda, where {found['rules']['mgda']['conflicts']:.0%} of the pairs conflict: `representation`" in said


def test_the_page_reads_results_of_one_rule() -> None:
    old = {"subset": {"median": 0.9, "lowest": 0.8}}
    assert "upgrad: `subset` 0.9000 (0.8000)" in page._fidelity({"fidelity": old})
