"""The memory of training steps, counted by the pages that the system hands out."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from mobiler2l_ns.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.set_num_threads(1)
def step():
    return sum(float(part[0]) for part in [torch.ones(2_000_000) for _ in range(20)])  # 160 MB
for _ in range(5):  # glibc finds places for all blocks in the first few
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    """Pages that five steps of 160 MB wait for.

    Left alone, glibc changes its thresholds while it runs, with another result in each run. So they are fixed here.
    """
    fixed = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    found = subprocess.run([sys.executable, "-c", STEPS, mode], capture_output=True, text=True, check=True, env=fixed)
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_a_step_uses_the_memory_of_the_last_one():
    assert 20 * faults("keep") < faults("return")  # how many there are depends on the system's page size
