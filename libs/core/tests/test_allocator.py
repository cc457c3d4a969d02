# SPDX-License-Identifier: Apache-2.0
"""Buffers come from one heap, whatever thread asks: what one has freed the next one uses."""

import platform
import subprocess
import sys

import pytest

# each thread keeps a block on its heap, so that a heap of its own cannot go away again; arenas are counted by glibc
CODE = """
import ctypes, sys, threading
if sys.argv[1] == "one":
    from enclavekit_core.allocator import use_one_arena
    use_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(8)
def work():
    together.wait()
    libc.malloc(ctypes.c_size_t(50_000))
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc")
def test_threads_share_one_heap():
    def heaps(which):
        done = subprocess.run([sys.executable, "-c", CODE, which], capture_output=True, text=True, check=True)
        return done.stdout.count("<heap nr=")

    assert heaps("one") == 1
    assert heaps("many") > 1


FAULTS = """
import resource, sys
if sys.argv[1] == "kept":
    from enclavekit_core.allocator import keep_freed
    keep_freed(2 * 1024 * 1024)
def work(rounds):
    for _ in range(rounds):
        parts = [bytes(64 * 1024) for _ in range(8)]
        parts.reverse()
        parts.clear()
work(20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work(200)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc")
def test_freed_buffers_are_used_again():
    def faults(which):
        done = subprocess.run([sys.executable, "-c", FAULTS, which], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("kept") < 200 < faults("given back")
