# SPDX-License-Identifier: Apache-2.0
"""Detached commands: they outlive their caller, keep their last words and their status, and are their client's own."""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess

import pytest
from enclavekit_pipeline.enclave.clients import Grant, Refused
from enclavekit_pipeline.enclave.job_ring import RING_BYTES, JobRing
from enclavekit_pipeline.enclave.jobs import MAX_JOBS, MAX_JOBS_OF_CLIENT, Job, Jobs
from enclavekit_pipeline.wire.exec_messages import Exit

from .conftest import BIN, CID, grant, install_program, listening
from .test_terminal import Window


@pytest.fixture(scope="module")
def enclave(inside):
    clients = [
        grant(inside, "alice", system=True, allow=["exec", "kill", "ps"]),
        grant(inside, "bob", allow=["exec", "kill", "ps"], user="1234"),
        grant(inside, "mallory", allow=["cp-in"]),
    ]
    install_program("sleep", inside.app)
    with listening(inside, clients):
        yield inside


@pytest.fixture
def held(tmp_path):
    """A FIFO whose end says that whoever opened it for writing is gone."""
    path = tmp_path / "held"
    os.mkfifo(path)
    os.chmod(path, 0o622)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)

    class Held:
        def __str__(self):
            return str(path)

        def read(self):
            assert poll.poll(20_000), "neither words nor an end"
            return os.read(descriptor, 65536)

    yield Held()
    os.close(descriptor)


def detach(enclave, script, *flags, **more):
    done = enclave.run("exec", "-d", "--system", *flags, CID, "--", "sh", "-c", script, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def jobs(enclave, *flags, **more):
    return {job["job"]: job for job in json.loads(enclave.run("jobs", "--json", *flags, CID, **more).stdout)}


def logs(enclave, job, *flags, **more):
    return enclave.run("logs", *flags, CID, job, **more)


def test_job_runs_on_and_leaves_its_words_and_status(enclave, held):
    os.mkfifo(f"{held}.go")
    job = detach(enclave, f"echo out; echo err >&2; read x < {held}.go; echo then $x; exit 5", "-e", "A=b")
    assert jobs(enclave)[job]["ended"] is None
    with open(f"{held}.go", "w") as go:
        go.write("go\n")
    done = logs(enclave, job, "-f")
    assert done.returncode == 0
    assert done.stdout == b"out\nthen go\n"
    assert b"err\n" in done.stderr
    listed = jobs(enclave)[job]
    assert (listed["ended"]["status"], listed["command"], listed["client"]) == (5, "sh", "alice")
    assert logs(enclave, job).stdout == b"out\nthen go\n"
    table = enclave.run("jobs", CID).stdout.decode()
    assert f"{job} " in table
    assert "exit 5" in table


def test_logs_of_what_runs_are_what_there_is(enclave, held):
    job = detach(enclave, f"echo here; exec 3> {held}; echo up >&3; exec sleep 1000")
    assert held.read() == b"up\n"
    assert logs(enclave, job).stdout == b"here\n"
    assert enclave.run("kill", CID, job).returncode == 0
    assert held.read() == b""
    assert logs(enclave, job, "-f").stdout == b"here\n"
    assert jobs(enclave)[job]["ended"]["signal"] == signal.SIGTERM
    assert b"it has ended" in enclave.run("kill", CID, job).stderr


def test_kill_reaches_all_that_a_job_started(enclave, held):
    job = detach(enclave, f"set -m; sh -c 'exec 3> {held}; echo up >&3; exec sleep 1000' & wait")
    assert held.read() == b"up\n"
    assert enclave.run("kill", "-s", "KILL", CID, job).returncode == 0
    assert held.read() == b""


def test_time_out_ends_a_job(enclave):
    job = detach(enclave, "exec sleep 1000", "--timeout", "0.2")
    logs(enclave, job, "-f")
    assert jobs(enclave)[job]["ended"] == {"status": 143, "signal": 15, "timed_out": True}


def test_only_the_last_of_much_output_is_kept(enclave):
    job = detach(enclave, f"head -c {RING_BYTES * 2} /dev/zero; echo the end")
    logs(enclave, job, "-f")
    done = logs(enclave, job)
    assert len(done.stdout) == RING_BYTES
    assert done.stdout.endswith(b"\0the end\n")
    assert f"{RING_BYTES + 8} bytes of output are no longer kept".encode() in done.stderr


def test_attach_reads_and_types(enclave):
    job = detach(enclave, "while read line; do echo got $line; done; echo over; exit 6", "-i")
    done = enclave.run("attach", CID, job, stdin=b"one\ntwo\n")
    assert (done.returncode, done.stdout) == (6, b"got one\ngot two\nover\n")


def test_attach_to_what_has_ended_tells_its_status(enclave):
    job = detach(enclave, "exit 9")
    logs(enclave, job, "-f")
    assert enclave.run("attach", CID, job).returncode == 9


def test_leaving_a_job_does_not_end_it(enclave, held):
    job = detach(enclave, f"exec 3> {held}; while read line; do echo $line >&3; echo shown; done", "-i")
    words = [BIN / "pipeline", "attach", *enclave.flags(), str(CID), job]
    with subprocess.Popen(words, env=enclave.environment, stdin=-1, stdout=-1, stderr=-1) as process:
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"shown\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert b"runs on" in process.stderr.read()
    assert held.read() == b"hello\n"
    assert jobs(enclave)[job]["ended"] is None
    enclave.run("kill", CID, job)


def test_job_with_a_terminal_is_entered_and_left_by_keys(enclave):
    job = detach(enclave, "stty -echo; while read line; do echo got $line of $(stty size); done", "-i", "-t")
    assert jobs(enclave)[job]["terminal"]
    for word in (b"first", b"second"):
        with contextlib.closing(Window(enclave, "attach", CID, job, rows=31, columns=42)) as one:
            one.type(word + b"\r")
            one.wait_for(b"got " + word + b" of 31 42")
            one.type(b"\x10\x11")
            assert one.end() == 0
    assert jobs(enclave)[job]["ended"] is None
    enclave.run("kill", "-s", "HUP", CID, job)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_to_who_has_attached_leaves_the_terminal_in_order(enclave, number):
    job = detach(enclave, "echo ready; while read line; do echo got $line; done", "-i", "-t")
    with contextlib.closing(Window(enclave, "attach", CID, job)) as one:
        one.type(b"x\r")
        one.wait_for(b"got x")
        one.process.send_signal(number)
        assert one.end() == 0
    assert jobs(enclave)[job]["ended"] is None
    enclave.run("kill", CID, job, "-s", "KILL")


def test_jobs_are_their_client_s(enclave):
    job = detach(enclave, "exec sleep 1000")
    done = enclave.run("exec", "-d", CID, "--", "sleep", "1000", identity="bob")
    other = done.stdout.decode().strip()
    assert job not in jobs(enclave, identity="bob")
    assert other not in jobs(enclave)
    assert jobs(enclave, "--system")[other]["client"] == "bob"
    for words in (("logs", CID, job), ("attach", CID, job), ("kill", CID, job)):
        done = enclave.run(*words, identity="bob")
        assert done.returncode in (2, 255)
        assert b"somebody else's" in done.stderr
    for words in (("jobs", "--system", CID), ("logs", "--system", CID, job), ("kill", "--system", CID, job)):
        assert b"may not act on the system" in enclave.run(*words, identity="bob").stderr
    assert b"may not exec" in enclave.run("jobs", CID, identity="mallory").stderr
    assert enclave.run("kill", "--system", CID, other).returncode == 0
    assert enclave.run("kill", CID, job).returncode == 0


def kept(jobs, client, count, ended):
    for _ in range(count):
        jobs._started = number = jobs._started + 1
        job = Job(f"j{number}", client, "sh", None, JobRing(), False, number)
        job.ended = Exit(status=0) if ended else None
        jobs._jobs[job.id] = job


async def test_oldest_ended_job_makes_room_and_running_ones_do_not():
    jobs = Jobs()
    kept(jobs, "alice", 1, ended=True)
    kept(jobs, "bob", 2, ended=False)
    kept(jobs, "bob", 2, ended=True)
    kept(jobs, "bob", MAX_JOBS_OF_CLIENT - 4, ended=False)
    jobs._make_room("bob")
    assert set(jobs._jobs) == {"j1", "j2", "j3", *(f"j{n}" for n in range(5, MAX_JOBS_OF_CLIENT + 2))}
    kept(jobs, "bob", 1, ended=False)
    del jobs._jobs["j5"]
    kept(jobs, "bob", 1, ended=False)
    with pytest.raises(Refused):
        jobs._make_room("bob")
    jobs._make_room("carol")
    kept(jobs, "carol", MAX_JOBS - len(jobs._jobs), ended=False)
    jobs._make_room("dave")
    assert "j1" not in jobs._jobs  # alice's: the only one that has ended
    kept(jobs, "dave", 1, ended=False)
    with pytest.raises(Refused):
        jobs._make_room("eve")


async def test_no_room_no_job(monkeypatch):
    monkeypatch.setattr("enclavekit_pipeline.enclave.jobs.MAX_JOBS_OF_CLIENT", 0)
    with pytest.raises(Refused):
        Jobs().start(Grant(name="a", allow=[]), "sh", lambda: pytest.fail("started"), None, None)


def test_jobs_end_with_the_listener(inside, tmp_path, held):
    place = dataclasses.replace(inside, directory=tmp_path)
    with listening(place, [grant(inside, "alice", system=True)], cid=24):
        script = f"exec 3> {held}; echo up >&3; exec sleep 1000"
        assert inside.run("exec", "-d", "--system", 24, "--", "sh", "-c", script).returncode == 0
        assert held.read() == b"up\n"
    assert held.read() == b""


def test_jobs_end_with_a_listener_that_is_killed(inside, tmp_path, held):
    place = dataclasses.replace(inside, directory=tmp_path)
    with listening(place, [grant(inside, "alice", system=True)], cid=25) as listener:
        script = f"exec 3> {held}; echo up >&3; exec sleep 1000"
        assert inside.run("exec", "-d", "--system", 25, "--", "sh", "-c", script).returncode == 0
        assert held.read() == b"up\n"
        listener.kill()
        assert held.read() == b""


def test_ps_and_kill_of_processes(enclave, held):
    job = detach(enclave, f"exec 3> {held}; echo $$ >&3; exec sleep 1000")
    pid = int(held.read())
    found = {one["pid"]: one for one in json.loads(enclave.run("ps", "--json", "--system", CID).stdout)}
    assert found[pid]["job"] == job
    assert found[pid]["command"] == "sleep 1000"
    assert 1 in found
    inside_app = json.loads(enclave.run("ps", "--json", CID).stdout)
    assert pid not in {one["pid"] for one in inside_app}
    assert b"none in the app's root" in enclave.run("kill", CID, pid).stderr
    assert enclave.run("kill", "--system", CID, pid).returncode == 0
    assert held.read() == b""


def test_client_with_a_user_signals_its_own_processes_only(enclave):
    words = ("exec", "-d", CID, "--", "sleep", "1000")
    by_root, own = (
        enclave.run(*words).stdout.decode().strip(),
        enclave.run(*words, identity="bob").stdout.decode().strip(),
    )
    found = {one["job"]: one for one in json.loads(enclave.run("ps", "--json", "--system", CID).stdout) if one["job"]}
    seen = {one["pid"] for one in json.loads(enclave.run("ps", "--json", CID, identity="bob").stdout)}
    assert {found[by_root]["pid"], found[own]["pid"]} <= seen
    assert (found[own]["uid"], found[by_root]["uid"]) == (1234, 0)
    done = enclave.run("kill", CID, found[by_root]["pid"], identity="bob")
    assert b"may signal processes of 1234 only" in done.stderr
    assert enclave.run("kill", CID, found[own]["pid"], identity="bob").returncode == 0
    assert enclave.run("kill", CID, by_root).returncode == 0


@pytest.mark.parametrize("words", [("kill", CID, "x"), ("kill", CID, "0"), ("kill", "-s", "NONE", CID, "j1")])
def test_usage_of_kill(enclave, words):
    assert enclave.run(*words).returncode == 2


def test_job_that_is_not_there(enclave):
    assert b"cannot find job j999" in logs(enclave, "j999").stderr
    assert logs(enclave, "one").returncode == 2


def test_run_is_exec_through_a_shell(enclave):
    def run(*words):
        return enclave.run("run", "--system", "--cid", CID, *words)

    done = run("--command", "echo \"$0\" 'a  b'; echo err >&2; exit 3")
    assert done.returncode == 3
    assert done.stdout.endswith(b"a  b\n")
    assert b"err\n" in done.stderr
    assert run("--command", "kill -KILL $$").returncode == 137
    job = run("--no-wait", "--command", "echo later").stdout.decode().strip()
    assert logs(enclave, job, "-f").stdout == b"later\n"
