# SPDX-License-Identifier: Apache-2.0
"""Buffers of many threads come from one heap: what one has freed the next one uses."""

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
