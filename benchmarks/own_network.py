# SPDX-License-Identifier: Apache-2.0
"""A network of its own for a benchmark: a loopback interface that no rule, no connection tracking and nobody's traffic
touches, and TCP without pacing.

With BBR as the machine's default, the kernel times the segments even of a connection to itself, and what is measured is
that timer. The namespace has Reno instead, which each kernel has and which on a lossless interface sends as Cubic does.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from enclavekit_enclave_init.runtime.syscalls import bring_loopback_up

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
SETTINGS = {
    "tcp_congestion_control": "reno",
    "ip_local_port_range": "1024 65535",  # as many clients at one address
}


@contextmanager
def own_network() -> Iterator[None]:
    """Be in it, and all that is started meanwhile; without the privileges stay where we are, and say so."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if LIBC.unshare(CLONE_NEWNET):
            print(f"measured in the machine's own network: {os.strerror(ctypes.get_errno())}")
            yield
            return
        try:
            bring_loopback_up()
            for name, value in SETTINGS.items():
                with open(f"/proc/sys/net/ipv4/{name}", "w", encoding="ascii") as out:
                    out.write(value)
            yield
        finally:
            if LIBC.setns(before, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot return to the machine's network")
    finally:
        os.close(before)
