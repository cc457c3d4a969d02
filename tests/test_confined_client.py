# SPDX-License-Identifier: Apache-2.0
"""What enclave.yaml says of a client, from the manifest to the process in a running enclave; and a shell in there."""

import contextlib
import os
import select
import subprocess

import pytest
import yaml

from .conftest import NOTES, need, start_enclave

pytestmark = pytest.mark.xdist_group("enclave")


@pytest.fixture(scope="module")
def confined(shell, notes):
    """The notes image for `mallory`, who may do little: the app's user, a fence, a filter."""
    manifest = yaml.safe_load((NOTES / "enclave.yaml").read_text())
    manifest["app"] = {"rootfs": str(shell.directory / "notes.rootfs")}
    manifest["clients"] = [
        {
            "certificate": str(shell.directory / "keys/mallory.crt"),
            "allow": ["exec", "shell", "ps"],
            "user": "notes",
            "environment": ["LANG"],
            "landlock": {"read": ["/"], "write": ["/tmp", "/dev/null"]},
            "seccomp": "no-network",
        }
    ]
    path = shell.directory / "confined.yaml"
    path.write_text(yaml.safe_dump(manifest))
    shell.run("rbuilds", "build", "--config", path, "--output", "confined.eif")
    running = start_enclave(shell, shell.directory / "confined.eif")
    yield running
    shell.run("nitro-emu", "terminate-enclave", "--enclave-id", running.id)


def enter(confined, verb, *words, **more):
    return confined.shell.run(*confined.pipeline(verb, *words, identity="keys/mallory"), **more)


def test_fences_of_the_manifest_are_around_the_command(confined):
    script = "id -u; echo in > /tmp/mine && cat /tmp/mine; echo out > /data/mine || echo refused"
    done = enter(confined, "exec", confined.cid, "--", "sh", "-c", script)
    assert done.stdout.decode().split()[1:] == ["in", "refused"]
    assert done.stdout.decode().split()[0] != "0"
    status = enter(confined, "exec", confined.cid, "--", "cat", "/proc/self/status").stdout.decode()
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert [lines[name] for name in ("CapEff", "NoNewPrivs", "Seccomp")] == ["0" * 16, "1", "2"]
    words = ("--timeout", 60, confined.cid, "--", "httpd", "-f", "-p", "127.0.0.1:8001")
    enter(confined, "exec", *words, expect=1)  # it would listen for ever
    for flags in (("-u", "root"), ("-e", "PATH=/tmp"), ("--system",)):
        enter(confined, "exec", *flags, confined.cid, "--", "id", expect=255)
    enter(confined, "kill", confined.cid, "1", expect=3)


def test_commands_are_started_by_the_small_process(confined, enclave):
    """It has to work with the interpreter that is in the image, too."""
    assert "forker.py" in enclave.shell.output(*enclave.pipeline("ps", "--system", enclave.cid))


def test_ps_shows_the_app_and_nothing_of_the_framework(confined):
    listed = enter(confined, "ps", confined.cid).stdout.decode()
    assert "httpd" in listed
    assert "pipeline" not in listed


def test_shell_has_a_terminal_that_the_app_s_root_knows(confined):
    master, slave = os.openpty()
    words = [str(word) for word in confined.pipeline("shell", confined.cid, identity="keys/mallory")]
    where = {"cwd": confined.shell.directory, "env": confined.shell.environment}
    with subprocess.Popen(words, stdin=slave, stdout=slave, stderr=subprocess.PIPE, **where) as process:
        os.close(slave)
        os.write(master, b"test -t 0 && echo a $((1 + 1)) terminal; exit 5\n")
        poll = select.poll()
        poll.register(master, select.POLLIN)
        seen = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while b"a 2 terminal" not in seen:
                assert poll.poll(60_000), seen
                seen += os.read(master, 65536)
        assert process.wait(60) == 5, (seen, process.stderr.read())
    os.close(master)
    assert b"a 2 terminal" in seen


@pytest.mark.long
def test_limits_hold_together_on_a_kernel_of_its_own(shell, notes):
    """By cgroup version 2, where the listener has to step aside in its own group; also when it has been started again.
    Nothing but a virtual machine has a hierarchy for itself.
    """
    need("qemu-system-x86_64")
    manifest = yaml.safe_load((NOTES / "enclave.yaml").read_text())
    manifest["app"] = {"rootfs": str(shell.directory / "notes.rootfs")}
    limits = {"memory_max": "64M", "tasks_max": 8, "cpu_quota": "50%"}
    manifest["clients"] = [
        {"certificate": str(shell.directory / "keys/mallory.crt"), "user": "notes", **limits},
        {"certificate": str(shell.directory / "keys/alice.crt"), "allow": "all"},
    ]
    path = shell.directory / "limited.yaml"
    path.write_text(yaml.safe_dump(manifest))
    shell.run("rbuilds", "build", "--config", path, "--output", "limited.eif")
    running = start_enclave(shell, shell.directory / "limited.eif", machine="qemu")
    where = "import os; print(open('/proc/self/cgroup').read()); print(os.listdir('/sys/fs/cgroup/unit-pipeline'))"
    try:
        for _ in range(2):
            crowd = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 600 & done; echo all"
            done = enter(running, "exec", running.cid, "--", "sh", "-c", crowd, expect=None)
            assert b"can't fork" in done.stderr and b"all" not in done.stdout, done
            large = ("busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1")
            enter(running, "exec", running.cid, "--", *large, expect=137)
            running.exec(*large)  # alice has no limits
            system = running.pipeline("exec", "--system", running.cid, "--", "/usr/bin/python3", "-c")
            told = shell.output(*system, where)
            assert "0::/unit-pipeline/own" in told and "client-" in told
            shell.run(*system, "import os, signal; os.kill(os.getppid(), signal.SIGKILL)", expect=255)
    finally:
        shell.run("nitro-emu", "terminate-enclave", "--enclave-id", running.id)
