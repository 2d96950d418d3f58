"""The memory of training steps, counted by the pages that the system hands out."""

import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from mobiler2l_ns.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    return sum(float(part[0]) for part in [torch.ones(2_000_000) for _ in range(20)])  # 160 MB
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    """Pages that five steps of 160 MB wait for."""
    found = subprocess.run([sys.executable, "-c", STEPS, mode], capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_a_step_uses_the_memory_of_the_last_one():
    assert faults("keep") < 1000 < 10_000 < faults("return")
