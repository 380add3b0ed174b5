"""Freed memory is kept: a process that frees and asks again faults no page in again."""

import subprocess
import sys

import pytest

from pycls.runtime.memory import keep_freed_memory

LOOP = """
import resource, sys, torch
from pycls.runtime.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    return [torch.zeros(size << 18) for size in (1, 5, 40)]  # 1, 5 and 40 MB
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


def faults(how: str) -> float:
    done = subprocess.run([sys.executable, "-c", LOOP, how], capture_output=True, text=True, check=True, timeout=120)
    return float(done.stdout)


def test_what_is_freed_is_not_faulted_in_again():
    if not keep_freed_memory():
        pytest.skip("no glibc")
    pages = faults("leave")
    assert pages > 20, "without it, pages are given back and faulted in at every step"
    assert faults("keep") < pages / 10
