# SPDX-License-Identifier: Apache-2.0
"""A real enclave on a kernel without what has come since 4.14: everything starts that needs none of it, the boot names
what is missing, and who asks for a protection that is not there does not run."""

import os
import platform

import pytest

from .test_unit_effects import ONCE, OVER, py, sh

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="its calls' numbers are not known here"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a filter without NoNewPrivileges needs root"),
]


def test_units_run_and_protections_that_are_missing_are_named_and_not_passed_over(machine):
    machine.flags = ["old-kernel"]
    machine.file("/etc/shut", "shut\n")
    read = "cat /etc/shut"
    machine.unit("plain", sh("echo runs") + ONCE)
    machine.unit("fenced", sh(read) + "LandlockRead = ['/usr']\n" + ONCE)
    machine.unit("fenced-too", sh(read) + "LandlockWrite = ['/tmp']\n" + ONCE)
    machine.unit(
        "lenient", sh(read) + "LandlockRead = ['/usr']\nInsecureMayLack = ['LandlockRead', 'SeccompProfile']\n"
        "SeccompProfile = 'no-network'\n" + ONCE
    )  # fmt: skip
    # what it may lack and has, it has
    machine.unit(
        "filtered",
        py("import socket\ntry: socket.socket()\nexcept OSError as exc: print(exc.errno)\n")
        + "SeccompProfile = 'no-network'\nInsecureMayLack = ['SeccompProfile']\n"
        + ONCE,
    )
    machine.unit("app", sh("exit 5") + OVER + "After = ['plain', 'fenced', 'fenced-too', 'lenient', 'filtered']\n")
    assert machine.boot().wait()["exit_status"] == 5
    console = "\n".join(machine.console)
    for feature in ("openat2", "Landlock"):
        assert f"enclave-init: this kernel has no {feature}" in console
    for name in ("fenced", "fenced-too"):
        assert f"enclave-init: {name} failed" in console and not (machine.out / f"{name}.log").exists()
    assert machine.log("plain") == ["runs"]
    assert machine.log("lenient") == ["shut"]
    assert "enclave-init: lenient runs without LandlockRead (insecure" in console
    assert machine.log("filtered") == ["97"] and "filtered runs without" not in console


def test_nothing_is_named_that_is_there(machine):
    machine.unit("app", sh("exit 0") + OVER)
    machine.boot().wait()
    missing = [line for line in machine.console if "this kernel has no" in line]
    assert not any("seccomp" in line or "inotify" in line for line in missing), missing
