"""Keeping freed memory, in processes of their own: the setting lasts as long as a process."""

import os
import subprocess
import sys

import pytest

from fpnlab.cli import allocator

# Blocks above 32 MiB, which glibc maps whatever it has seen before, and below the 64 MiB of a heap.
PROGRAM = """
import resource, sys, threading
from fpnlab.cli.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(20):
        bytearray(40 * 2**20)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(mode):
    run = [sys.executable, "-c", PROGRAM, mode]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_large_blocks_freed_in_a_thread_are_used_again():
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except ValueError:
        pytest.skip("a setting of glibc")
    assert page_faults("keep") < 0.25 * page_faults("default")


@pytest.mark.parametrize("error", [AttributeError, OSError, ValueError])
def test_nothing_happens_without_glibc(error, monkeypatch):
    def missing(name):
        raise error(name)

    monkeypatch.setattr(allocator.os, "confstr", missing, raising=False)
    assert allocator.keep_freed_memory() is False
