# SPDX-License-Identifier: Apache-2.0
"""What the limits of a unit keep it from, in a real enclave: each is run into, beside a unit that has none."""

import itertools
import json
import os
import resource
import signal

import pytest

from .test_unit_effects import ONCE, OVER, py

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: limits bind who has no capabilities"),
    pytest.mark.xdist_group("limits"),  # one enclave for all of them
]

# each unit has one of its own, and no other run of the tests has it: some limits count all of a user's on the machine
FIRST_USER = 20_000 + os.getpid() % 2000 * 20

# what a process can do; each line of `tried` is a limit and what came of running into it
TRIES = r"""
import ctypes, json, os, resource, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
mq = libc if hasattr(libc, "mq_open") else ctypes.CDLL("librt.so.1", use_errno=True)
def outcome(call):
    try:
        return call()
    except OSError as exc:
        return exc.errno
def checked(result):
    return 0 if result != -1 else ctypes.get_errno()
def count(call, most):
    for done in range(most):
        if code := call():
            return [done, code]
    return [most, 0]
def fork():
    try:
        if os.fork() == 0:
            signal.pause()
    except OSError as exc:
        return exc.errno
def core():
    child = os.fork()
    if child == 0:
        os.chdir("/out")
        os.abort()
    return os.WCOREDUMP(os.waitpid(child, 0)[1])
def realtime():
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
tried = {
    "CORE": core(),
    "MEMLOCK": checked(libc.mlock(ctypes.create_string_buffer(1 << 20), ctypes.c_size_t(1 << 20))),
    "MSGQUEUE": checked(mq.mq_open(b"/%d" % os.getpid(), os.O_CREAT | os.O_RDWR, 0o600, None)),
    "NICE": outcome(lambda: os.nice(-3) and None),
    "NOFILE": count(lambda: outcome(lambda: os.dup(0) and None), 50),
    "RTPRIO": outcome(realtime),
    "SIGPENDING": count(lambda: checked(libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), None)), 20),
    "STACK": outcome(lambda: os.posix_spawn("/bin/true", ["true", *["x" * 100_000] * 4], {}) and None),
    "NPROC": count(fork, 9),
}
print(json.dumps(tried), flush=True)
"""
HOG = "x = []\ntry:\n    for _ in range(400): x.append(bytearray(1 << 20))\nexcept MemoryError: print(len(x) < 390)\n"


@pytest.fixture(scope="module")
def booted(_namespaces, tmp_path_factory):
    from .conftest import Machine

    machine = Machine(tmp_path_factory.mktemp("m"))
    machine.out.chmod(0o777)
    users = itertools.count(FIRST_USER)

    def unit(name, text):
        machine.unit(name, f"User = {next(users)}\n" + ONCE + text)

    bounds = (
        "LimitCORE = 0\nLimitMEMLOCK = 65536\nLimitMSGQUEUE = 4096\nLimitNICE = 0\nLimitNOFILE = 20\nLimitRTPRIO = 0\n"
        "LimitSIGPENDING = 5\nLimitSTACK = '1M'\nLimitNPROC = 4\n"
    )
    unit("bound", py(TRIES) + bounds)
    unit("free", py(TRIES) + "After = ['bound']\n")
    unit("generous", py(TRIES) + "LimitNICE = 30\nLimitRTPRIO = 2\nAfter = ['free']\n")
    unit("address-space", py(HOG) + "LimitAS = '256M'\n")
    unit("data", py(HOG) + "LimitDATA = '128M'\n")
    unit("processor", py("while True: pass\n") + "LimitCPU = '1:5'\n")
    unit("file", py("open('/out/big', 'wb', 0).write(bytes(20000))\n") + "LimitFSIZE = 8192\n")
    realtime = "import os\nos.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))\nprint('set')\nwhile True: pass\n"
    unit("realtime", py(f"import sys\n{realtime}").replace("print('set')", "print('set', flush=True)")
                 + "LimitRTPRIO = 1\nLimitRTTIME = '100000:infinity'\n")  # fmt: skip
    names = sorted(path.name.removesuffix(".service") for path in (machine.image / "service").iterdir())
    machine.unit("zz", "ExecStart = 'true'\n" + ONCE + OVER + f"After = {names}\n")
    try:
        machine.boot().wait()
        yield machine
    finally:
        machine.close()


def ended(machine, name, words):
    return any(line.startswith(f"enclave-init: {name} {words}") for line in machine.console)


@pytest.fixture
def tried(booted):
    return {name: json.loads(booted.log(name)[-1]) for name in ("bound", "free")}


@pytest.fixture
def generous(booted):
    """What a unit can do that has been given more than PID 1 itself has."""
    if ended(booted, "generous", "failed: cannot set Limit"):
        pytest.skip("root of this machine may not raise limits (CAP_SYS_RESOURCE)")
    return json.loads(booted.log("generous")[-1])


@pytest.mark.parametrize(
    ("limit", "bound", "free"),
    [
        ("MEMLOCK", 12, 0),  # ENOMEM
        ("MSGQUEUE", 24, 0),  # EMFILE
        ("SIGPENDING", [5, 11], [20, 0]),  # EAGAIN
        ("STACK", 7, None),  # E2BIG: arguments may have a quarter of it
        ("NPROC", [3, 11], [9, 0]),  # EAGAIN; itself is the fourth
    ],
)
def test_limit_is_run_into_where_it_is_and_nowhere_else(tried, limit, bound, free):
    assert (tried["bound"][limit], tried["free"][limit]) == (bound, free)


def test_descriptors(tried):
    (made, code), (most, none) = tried["bound"]["NOFILE"], tried["free"]["NOFILE"]
    assert 0 < made < 20 and code == 24 and (most, none) == (50, 0)


def test_priorities_are_denied(tried):
    assert (tried["bound"]["NICE"], tried["bound"]["RTPRIO"]) == (1, 1)  # EPERM


def test_priorities_are_given(generous):
    assert generous["NICE"] is None
    if generous["RTPRIO"] is not None:
        pytest.skip("this machine gives nobody real time")


def test_core(tried):
    with open("/proc/sys/kernel/core_pattern") as source:
        if source.read().startswith("|"):
            pytest.skip("this machine's cores go to a program, which no limit keeps them from")
    if resource.getrlimit(resource.RLIMIT_CORE)[0] == 0:
        pytest.skip("cores are off for everybody on this machine")
    assert (tried["bound"]["CORE"], tried["free"]["CORE"]) == (False, True)


def test_memory(booted):
    assert booted.log("address-space") == ["True"] and booted.log("data") == ["True"]


def test_processor_time(booted):
    assert ended(booted, "processor", f"killed by signal {signal.SIGXCPU}")


def test_file_size(booted):
    assert (booted.out / "big").stat().st_size == 8192


def test_realtime_without_sleep(booted, generous):
    if generous["RTPRIO"] is not None:
        pytest.skip("this machine gives nobody real time")
    assert booted.log("realtime") == ["set"] and ended(booted, "realtime", f"killed by signal {signal.SIGXCPU}")
