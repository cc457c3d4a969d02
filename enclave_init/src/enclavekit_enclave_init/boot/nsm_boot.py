# SPDX-License-Identifier: Apache-2.0
"""What PID 1 does with the NSM before any service: entropy for the kernel, a check of the clock."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
import time

from enclavekit_core.errors import DeviceError

from enclavekit_enclave_init.boot import nsm_answers
from enclavekit_enclave_init.boot.clock_policy import decide_correction
from enclavekit_enclave_init.runtime import syscalls

DEVICE = "/dev/nsm"
PTP_DEVICE = "/dev/ptp0"
NSM_IOCTL_RAW = 0xC0200A00  # _IOWR(0x0A, 0, struct nsm_raw)
NSM_RAW = struct.Struct("=QQQQ")  # request address, length; response address, length
LENGTH = struct.Struct(">I")  # before a message on the emulator's socket
TIMEOUT_S = 30.0
MIN_SEED_BYTES = 32  # what the kernel's generator holds; an answer has 256
RNDADDENTROPY = 0x40085203  # random(4): struct rand_pool_info is entropy in bits, size in bytes, then the bytes
POOL_INFO = struct.Struct("=ii")


def ask(request: bytes, path: str = DEVICE) -> bytes:
    """Return the NSM's answer. Raises OSError, DeviceError."""
    if stat.S_ISSOCK(os.stat(path).st_mode):
        return _ask_socket(request, path)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        outgoing = ctypes.create_string_buffer(request, len(request))
        incoming = ctypes.create_string_buffer(nsm_answers.MAX_RESPONSE_BYTES)
        argument = bytearray(
            NSM_RAW.pack(ctypes.addressof(outgoing), len(request), ctypes.addressof(incoming), len(incoming))
        )
        fcntl.ioctl(fd, NSM_IOCTL_RAW, argument)
        return incoming.raw[: min(NSM_RAW.unpack(argument)[3], len(incoming))]
    finally:
        os.close(fd)


def _ask_socket(request: bytes, path: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.connect(path)
        sock.sendall(LENGTH.pack(len(request)) + request)
        with sock.makefile("rb") as stream:
            (length,) = LENGTH.unpack(stream.read(LENGTH.size) or bytes(LENGTH.size))
            if length > nsm_answers.MAX_RESPONSE_BYTES:
                raise DeviceError("ask", path, f"it announces {length} bytes")
            return stream.read(length)


def seed_entropy(path: str = DEVICE) -> str:
    """Give the kernel random bytes of the NSM, credited; return what to say. Raises OSError, EnclavekitError."""
    if not os.path.exists(path):
        return "there is no NSM: the kernel has its own sources only"
    seed = nsm_answers.parse_random(ask(nsm_answers.ASK_RANDOM, path))
    if len(seed) < MIN_SEED_BYTES:
        raise DeviceError("seed from", path, f"it gave {len(seed)} bytes")
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, RNDADDENTROPY, POOL_INFO.pack(8 * len(seed), len(seed)) + seed)
    finally:
        os.close(fd)
    source = _hardware_generator()
    return f"{8 * len(seed)} bits of the NSM{f'; hardware generator {source}' if source else ''}"


def _hardware_generator() -> str:
    try:
        with open("/sys/class/misc/hw_random/rng_current", encoding="utf-8") as source:
            return source.read().strip()
    except OSError:
        return ""


def check_clock(path: str = DEVICE) -> str:
    """Compare the clock with the NSM's time and correct it; return what to say. Raises OSError, EnclavekitError."""
    if not os.path.exists(path):
        return "there is no NSM to compare with"
    before = time.time()
    answer = ask(nsm_answers.ASK_DOCUMENT, path)
    after = time.time()
    try:
        correction = decide_correction(before, nsm_answers.parse_timestamp(answer), after, read_ptp_offset())
    except ValueError as exc:
        raise DeviceError("read the time of", path, str(exc)) from exc
    if correction.slew_s:
        syscalls.slew_clock(correction.slew_s)
    elif correction.step_s:
        time.clock_settime(time.CLOCK_REALTIME, time.time() + correction.step_s)
    return "; ".join(correction.notes) or "it agrees with the NSM's time"


def read_ptp_offset(path: str = PTP_DEVICE) -> float | None:
    """Return the hypervisor's clock (kvm-ptp) less ours, in seconds; None where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            return None
        raise
    try:
        # FD_TO_CLOCKID of linux/posix-timers.h
        return time.clock_gettime((~fd << 3) | 3) - time.time()
    except OSError:
        return None
    finally:
        os.close(fd)
