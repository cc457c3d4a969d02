# SPDX-License-Identifier: Apache-2.0
"""Processes by the small process and by a fork of ours: the same either way, and nothing is left behind."""

import os
import resource
import signal
import sys

import pytest
from enclavekit_core.errors import InputError
from enclavekit_pipeline.enclave import forker
from enclavekit_pipeline.enclave.starting import Starter


@pytest.fixture(params=["small process", "fork of ours"])
def starter(request):
    starter = Starter.launch() if request.param == "small process" else Starter()
    assert (starter._orders is not None) == (request.param == "small process")
    yield starter
    starter.close()
    starter.close()


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


def run(starter, *argv, steps=(), environment=None, extra=(), paths=None):
    """Run a program to its end; return (status, output)."""
    read, write = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    order = (
        [os.fsencode(path) for path in paths or [argv[0]]],
        [os.fsencode(word) for word in argv],
        {os.fsencode(name): os.fsencode(value) for name, value in (environment or {}).items()},
        list(steps),
    )
    try:
        process = starter.start(order, [null, write, null, *extra])
        os.close(write)
        write = -1
        with open(read, "rb", closefd=False) as output:
            return process.wait(), output.read()
    finally:
        for descriptor in {read, write, null} - {-1}:
            os.close(descriptor)


def python(code):
    return (sys.executable, "-I", "-S", "-c", code)


@pytest.fixture
def ignoring():
    """As what a shell runs in the background, and worse."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGQUIT, signal.SIGUSR1, signal.SIGRTMAX)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_commands_ignore_no_signal_that_we_do(ignoring, starter):
    status = run(starter, "/bin/cat", "/proc/self/status")[1].decode()
    assert {int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigIgn", "SigBlk"))} == {0}


def test_status_output_and_environment(starter):
    before = descriptors()
    assert run(starter, *python("import os; raise SystemExit(7)"), environment={"A": "b"})[0] == 7
    assert b"'A': 'b'" in run(starter, *python("import os; print(dict(os.environ))"), environment={"A": "b"})[1]
    assert run(starter, *python("import os; os.kill(os.getpid(), 9)"))[0] == -signal.SIGKILL
    assert descriptors() == before


def test_child_is_ours_a_session_of_its_own_and_holds_nothing_else(starter):
    leaked = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        code = (
            "import os; print(os.getppid(), os.getsid(0) == os.getpid(), sorted(map(int, os.listdir('/proc/self/fd'))))"
        )
        _, text = run(starter, *python(code))
    finally:
        os.close(leaked)
    assert text.decode().split(None, 2) == [str(os.getpid()), "True", "[0, 1, 2, 3]\n"]  # 3 is that of listdir


def test_signals_are_as_a_program_expects_them(starter):
    code = "import signal; print([int(n) for n in (1, 2, 13, 15) if signal.getsignal(n) is signal.SIG_IGN])"
    # Python itself ignores SIGPIPE
    assert run(starter, *python(code))[1] == b"[13]\n"
    assert run(starter, "/bin/sh", "-c", "kill -PIPE $$")[0] == -signal.SIGPIPE


def test_steps_are_taken_in_order_and_with_descriptors(starter, tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    steps = [("go", "enter", 4), ("limit", "limit", (resource.RLIMIT_NOFILE, 33))]
    code = "import os, resource; print(os.getcwd(), resource.getrlimit(resource.RLIMIT_NOFILE))"
    assert run(starter, *python(code), steps=steps, extra=[folder])[1].decode() == f"{tmp_path} (33, 33)\n"
    os.close(folder)


def test_step_that_fails_is_named_and_nothing_runs(starter, tmp_path):
    with pytest.raises(InputError, match="it could not go there: no such file or directory"):
        run(starter, "/bin/sh", "-c", f"touch {tmp_path}/ran", steps=[("go there", "chdir", "/no/such")])
    with pytest.raises(InputError, match="it could not be strange: invalid argument"):
        run(starter, "/bin/sh", steps=[("be strange", "no-such-operation", None)])
    assert os.listdir(tmp_path) == []
    if starter._forker is None:
        with pytest.raises(ChildProcessError):  # nobody is left to be reaped
            os.waitpid(-1, os.WNOHANG)


def test_program_is_looked_for_in_turn(starter, tmp_path):
    (tmp_path / "plain").write_text("not a program")
    assert run(starter, "sh", "-c", "exit 3", paths=["/no/such/sh", "/bin/sh"])[0] == 3
    with pytest.raises(InputError, match="no such file"):
        run(starter, "x", paths=["/no/such/x", "/neither/x"])
    with pytest.raises(InputError, match="permission denied"):
        run(starter, "plain", paths=[str(tmp_path / "plain"), "/no/such/plain"])


def test_large_orders_fit(starter):
    words = ["x" * 1000] * 60
    assert run(starter, "/bin/sh", "-c", "echo $#", "sh", *words)[1] == b"60\n"


def test_without_the_small_process_the_work_goes_on():
    starter = Starter.launch()
    pid = starter._forker.pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert run(starter, "/bin/sh", "-c", "exit 4")[0] == 4
    assert starter._orders is None
    assert run(starter, "/bin/sh", "-c", "exit 5")[0] == 5


def test_small_process_is_small_and_goes_with_us():
    starter = Starter.launch()
    run(starter, "/bin/true")
    with open(f"/proc/{starter._forker.pid}/status") as status:
        resident_kib = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    assert resident_kib < 20_000
    starter._orders.close()
    assert starter._forker.wait(20) == 0  # by itself


def test_it_imports_the_standard_library_only():
    with open(forker.__file__) as source:
        assert "enclavekit_" not in source.read()
