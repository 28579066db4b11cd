"""What hardware.py asks of the system."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's malloc")

PAGES = 20 * 17 * 2**20 // 4096  # that 20 steps write
FAULTS = """
import ctypes, os, resource, sys, torch
from mage_agent.hardware import keep_freed_memory
if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # return everything, whatever lies on the heap
    ctypes.CDLL(None).mallopt(-3, 65536)
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    layers = [torch.ones(2**18)]
    for _ in range(16):
        layers.append(layers[-1] + 1)
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, **environment: str) -> int:
    """Pages that 20 steps fetch anew, each of which allocates 17 MiB and frees them."""
    command = [sys.executable, "-c", FAULTS, mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_step_takes_again_the_memory_that_the_last_one_freed() -> None:
    assert faults("as it is") > PAGES / 2
    assert faults("kept") < PAGES / 20


def test_settings_of_the_environment_stay() -> None:
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    assert faults("kept", **settings) > PAGES / 2
