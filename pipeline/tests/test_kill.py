# SPDX-License-Identifier: Apache-2.0
"""Either side is killed at random points of commands and copies. Afterwards there is no wedge, no descriptor, no child
and no half-made file, and the next request is served as if nothing had been.
"""

import asyncio
import hashlib
import os
import random
import secrets
import shutil
import subprocess

import pytest

from .conftest import BIN, grant, listening
from .test_defences import children, descriptors, until

KILL_CID = 27
OLD, NEW = secrets.token_bytes(300_000), secrets.token_bytes(12_000_000)
ALLOWED = {hashlib.sha256(content).digest() for content in (OLD, NEW)}
KEPT = (".old.enclavekit-partial", ".target.enclavekit-partial")  # for a copy's resumption, README of the part
LONGEST_S = 0.9  # a request's whole life, start of the process included: kills before, in and after it
MOST_TRIES = 100
LOOK_S = 0.25
IDLE_LOOKS = 400  # at a process that does nothing at all: more than its longest timer, a PING's 60 s


@pytest.fixture
def place(inside):
    for directory in (inside.app / "data", inside.directory / "ours"):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
    (inside.app / "data/old").write_bytes(NEW)
    (inside.directory / "new").write_bytes(NEW)
    return inside


def start(inside, rng):
    """Start a request of any kind; return its process."""
    target = f"{KILL_CID}:/data/target"
    flags = [*map(str, inside.flags()), "--connect-timeout", "3"]
    words = rng.choice(
        [
            ["cp", *flags, str(inside.directory / "new"), target],
            ["cp", *flags, str(inside.directory / "new"), f"{KILL_CID}:/data/old"],
            ["cp", *flags, f"{KILL_CID}:/data/old", str(inside.directory / "ours/target")],
            ["exec", "-i", *flags, "--system", str(KILL_CID), "--", "sh", "-c", "cat; exec sleep 1000"],
            ["exec", *flags, "--system", str(KILL_CID), "--", "sh", "-c", "yes & yes | cat; sleep 1000"],
        ]
    )
    with open(inside.directory / "new", "rb") as source:
        return subprocess.Popen(
            [BIN / "pipeline", *words],
            env=inside.environment,
            stdin=source,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def live(process, seconds):
    """Let it live that long, or until it ends."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


def wait_while_it_works(process):
    """Wait for its end, however slow the machine is: what neither works nor waits for a processor or a disk hangs."""
    idle, before = 0, None
    while idle < IDLE_LOOKS:
        try:
            return process.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            now = work_of(process.pid)
            idle = idle + 1 if now == before else 0
            before = now
    raise AssertionError(f"it hangs: {before}")


def work_of(pid):
    """Return what its threads have done so far, by number: state, time used, how often they went to sleep."""
    done = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/stat") as stat, open(f"/proc/{pid}/task/{thread}/status") as status:
                fields = stat.read().rpartition(")")[2].split()
                switches = next(line for line in status if line.startswith("voluntary"))
        except FileNotFoundError:
            continue
        if fields[0] in "RD":
            return object()  # as good as another number: it would go on if it could
        done[thread] = (fields[0], fields[11], fields[12], int(switches.split()[1]))
    return done


def check_files(inside, others=()):
    """Every file that is there under its name is a whole one, and nothing but `others` is there."""
    for directory in (inside.app / "data", inside.directory / "ours"):
        for name in os.listdir(directory):
            if name not in others:
                assert name in ("old", "target"), f"left behind: {name}"
                assert hashlib.sha256((directory / name).read_bytes()).digest() in ALLOWED, name


def finish_copies(inside):
    """Copy to each target once more. That takes up or takes away what a cut copy kept for its resumption."""
    new, ours = inside.directory / "new", inside.directory / "ours/target"
    for source, target in ((new, f"{KILL_CID}:/data/target"), (new, f"{KILL_CID}:/data/old")):
        assert inside.run("cp", source, target).returncode == 0
    assert inside.run("cp", f"{KILL_CID}:/data/old", ours).returncode == 0
    assert {path.read_bytes() for path in (inside.app / "data/target", inside.app / "data/old", ours)} == {NEW}
    check_files(inside)


async def kill_callers(inside, rounds, seed):
    rng = random.Random(seed)
    with listening(inside, [grant(inside, "alice", system=True)], cid=KILL_CID) as listener:
        assert serves(inside)
        before = descriptors(listener)
        for _ in range(rounds):
            callers = [start(inside, rng) for _ in range(rng.choice((1, 1, 3)))]
            for caller in callers:
                live(caller, rng.uniform(0, LONGEST_S))
                caller.kill()
                caller.wait()
        await until(lambda: not children(listener), "a command stays")
        await until(lambda: descriptors(listener) <= before, "a descriptor stays")
        assert serves(inside)
        assert listener.poll() is None
        check_files(inside, KEPT)
        finish_copies(inside)


def kill_listeners(inside, rounds, seed):
    rng = random.Random(seed)
    for _ in range(rounds):
        with listening(inside, [grant(inside, "alice", system=True)], cid=KILL_CID) as listener:
            assert serves(inside)
            caller = start(inside, rng)
            live(caller, rng.uniform(0, LONGEST_S))
            listener.kill()
            wait_while_it_works(caller)  # no wedge: it hears of it
        check_files(inside, KEPT)
    with listening(inside, [grant(inside, "alice", system=True)], cid=KILL_CID):
        finish_copies(inside)


def serves(inside):
    words = ["exec", "--system", KILL_CID, "--", "sh", "-c", "exit 7"]
    for _ in range(MOST_TRIES):
        if (done := inside.run(*words)).returncode != 255:
            break  # what was cut may still be on its way out of a session limit
    return done.returncode == 7


def test_who_works_is_waited_for_and_who_hangs_is_found_out(monkeypatch):
    monkeypatch.setattr(f"{__name__}.LOOK_S", 0.02)
    monkeypatch.setattr(f"{__name__}.IDLE_LOOKS", 10)
    with subprocess.Popen(["sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"]) as busy:
        wait_while_it_works(busy)
        assert busy.returncode == 0
    with subprocess.Popen(["sleep", "1000"]) as hung:
        try:
            with pytest.raises(AssertionError, match="hangs"):
                wait_while_it_works(hung)
        finally:
            hung.kill()


async def test_callers_killed_at_random(place):
    await kill_callers(place, rounds=10, seed=1)


def test_listeners_killed_at_random(place):
    kill_listeners(place, rounds=4, seed=2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 107))
async def test_many_callers_killed_at_random(place, seed):
    await kill_callers(place, rounds=100, seed=seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(200, 203))
async def test_many_listeners_killed_at_random(place, seed):
    await asyncio.to_thread(kill_listeners, place, 100, seed)
