"""Rules on many tasks are solved on one thread of numpy's BLAS, and the number of threads is given back."""

import subprocess
import sys

CODE = """
import numpy, torch
from threadpoolctl import ThreadpoolController
from polytask.core.blas import one_thread
from polytask.core.state import Rule

def threads():
    return [pool["num_threads"] for pool in ThreadpoolController().info() if pool["internal_api"] == "openblas"]

before = threads()
with one_thread(100):
    assert all(number == 1 for number in threads())
with one_thread(8):
    assert threads() == before
Rule("upgrad", [str(i) for i in range(40)])([str(i) for i in range(40)], torch.eye(40, dtype=torch.float64))
assert threads()[: len(before)] == before
"""


def test_one_thread_and_back() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)
