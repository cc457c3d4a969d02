# SPDX-License-Identifier: Apache-2.0
"""Runs the operations of a boot plan, one by one, each with a line in the log.

What is required and fails ends the boot; what is not is named and passed over.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterable

from enclavekit_core.errors import EnclavekitError, describe_cause

from enclavekit_enclave_init.boot import steps
from enclavekit_enclave_init.boot.cgroup_mounts import set_up_cgroups
from enclavekit_enclave_init.boot.heartbeat import send_heartbeat
from enclavekit_enclave_init.boot.join import join_file, set_capability
from enclavekit_enclave_init.boot.kernel_features import cost_of_module
from enclavekit_enclave_init.boot.nsm_boot import check_clock, seed_entropy
from enclavekit_enclave_init.boot.nsm_relay import start_nsm_relay
from enclavekit_enclave_init.runtime import syscalls

Log = Callable[[str], None]


class BootError(EnclavekitError):
    """A required step of the boot failed: the enclave must not run (exit 1)."""


def run_operations(
    operations: Iterable[steps.Operation],
    log: Log,
    on_console: Callable[[], None],
    on_step: Callable[[str, float], None] = lambda what, seconds: None,
) -> None:
    """Run `operations` in order.

    Args:
        on_console: called after OpenConsole, when the descriptors 0, 1 and 2 are new.
        on_step: told what was done and how long it took.
    Raises:
        BootError("cannot <operation>: <cause>") at the first required one that fails.
    """
    for operation in operations:
        began = time.monotonic()
        try:
            result = _run(operation)
        except (OSError, EnclavekitError) as exc:
            message = f"cannot {operation}: {describe_cause(exc)}"
            if isinstance(operation, steps.LoadModule) and (cost := cost_of_module(operation.path)):
                message += f"; without it {cost}"
            if operation.required:
                raise BootError(message) from exc
            log(f"{message} (the boot goes on without)")
            continue
        if isinstance(operation, steps.OpenConsole):
            on_console()
        took_s = time.monotonic() - began
        on_step(str(operation), took_s)
        log(f"{operation}: {result or 'done'} ({took_s * 1000:.1f} ms)")


def _run(operation: steps.Operation) -> str:
    """Run one operation; return what to say instead of "done", if anything."""
    match operation:
        case steps.Mount(source, target, fstype, flags, data):
            return _mount(source, target, fstype, flags, data)
        case steps.MakeDirectory(path, mode):
            os.makedirs(path, mode, exist_ok=True)
        case steps.MakeLink(path, target):
            try:
                os.symlink(target, path)
            except FileExistsError:
                return "is there already"
        case steps.OpenConsole(path):
            _open_console(path)
        case steps.SetHostname(name):
            socket.sethostname(name)
        case steps.BringLoopbackUp():
            syscalls.bring_loopback_up()
        case steps.LoadModule(path, optional, unlink):
            return _load_module(path, optional, unlink)
        case steps.JoinFile(file):
            join_file(file)
        case steps.RemoveDirectories(paths):
            for path in paths:
                os.rmdir(path)
        case steps.SetCapability(item):
            set_capability(item.name, bytes.fromhex(item.value))
        case steps.StartNsmRelay(port):
            start_nsm_relay(port)
        case steps.SeedEntropy():
            return seed_entropy()
        case steps.CheckClock():
            return check_clock()
        case steps.WriteFile(path, text):
            return _write_file(path, text)
        case steps.SetUpCgroups(directory):
            return set_up_cgroups(directory)
        case steps.Heartbeat(cid, port, timeout_s):
            send_heartbeat(cid, port, timeout_s)
    return ""


def _mount(source: str, target: str, fstype: str, flags: int, data: str) -> str:
    try:
        syscalls.mount(source, target, fstype, flags, data)
    except OSError as exc:
        # mounted by the kernel itself (CONFIG_DEVTMPFS_MOUNT) is mounted
        if exc.errno != errno.EBUSY:
            raise
        return "is there already"
    return ""


def _open_console(path: str) -> None:
    handle = os.open(path, os.O_RDWR | os.O_NOCTTY)
    for fd in (0, 1, 2):
        os.dup2(handle, fd)
    if handle > 2:
        os.close(handle)


def _write_file(path: str, text: str) -> str:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return "the image has one"
    with open(fd, "w", encoding="utf-8") as out:
        out.write(text)
    return ""


def _load_module(path: str, optional: bool, unlink: bool) -> str:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if optional:
            return "there is none, the kernel may have it built in"
        raise
    try:
        syscalls.finit_module(handle)
    except FileExistsError:
        return "is there already"
    finally:
        os.close(handle)
    if unlink:
        os.unlink(path)
    return ""
