"""What the trainer adds to a step written by hand in plain PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_step_costs_little_more_than_by_hand():
    """At most 0.3 ms more. In a process without the tests' checks of annotations.

    What else runs on the machine can only add to the difference, so one measurement of three suffices.
    """
    script = Path(__file__).with_name("step_cost.py")
    seen = []
    for _ in range(3):
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=300)
        cost = json.loads(done.stdout)
        seen.append(cost)
        if cost["ours"] - cost["hand"] <= 0.3:
            return
    pytest.fail(f"milliseconds a step: {seen}")
