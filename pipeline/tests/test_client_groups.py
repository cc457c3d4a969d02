# SPDX-License-Identifier: Apache-2.0
"""Limits of a client count for all that it runs together: in the kernel's own control groups."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from enclavekit_core.cgroups import CONTROLLERS, find_hierarchies
from enclavekit_core.errors import ConfigError
from enclavekit_pipeline.enclave import client_groups
from enclavekit_pipeline.enclave.client_groups import ClientGroups
from enclavekit_pipeline.enclave.clients import Grant

from .conftest import BIN, CID, grant, listening

HIERARCHIES = {name: one for name, one in find_hierarchies().items() if name}
needs_groups = pytest.mark.skipif(
    not set(CONTROLLERS) <= set(HIERARCHIES), reason="no cgroups with memory, pids and cpu can be made here"
)
TASKS, MEMORY_MIB = 12, 64
HELD = "dd if=/dev/zero bs={}M count=1 | {{ head -c 1 >/dev/null; echo has it; sleep 600; }}"
LARGE = "exec dd if=/dev/zero of=/dev/null bs={}M count=1"
CROWD = "i=0; while [ $i -lt 50 ]; do i=$((i + 1)); sleep 600 & done; echo all"
HIDDEN = "setsid sh -c 'echo hidden; exec sleep 600' & setsid sh -c 'echo hidden; exec sleep 600' & exec sleep 600"
# two that would take a processor each; what both have used, between two times
BUSY = """
busy() { i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; }
cat /proc/uptime; (busy) & (busy); wait; times; cat /proc/uptime
"""


def groups_of(process):
    found = []
    for directory in {hierarchy.directory for hierarchy in HIERARCHIES.values()}:
        found += Path(directory).glob(f"client-{process.pid}-*")
    return found


def files_of(process, name):
    return [path / name for path in groups_of(process) if (path / name).exists()]


def sh(enclave, script, *flags, identity="alice"):
    return enclave.run("exec", *flags, "--system", CID, "--", "sh", "-c", script, identity=identity)


@contextlib.contextmanager
def following(inside, job):
    argv = [BIN / "pipeline", "logs", "-f", *inside.flags(), str(CID), job]
    with subprocess.Popen(argv, env=inside.environment, stdout=subprocess.PIPE) as process:
        yield process.stdout
        process.terminate()


@pytest.fixture
def listener(inside):
    limits = {"memory_max": f"{MEMORY_MIB}M", "tasks_max": TASKS, "cpu_quota": "50%"}
    clients = [grant(inside, "alice", system=True, user="1234", **limits), grant(inside, "bob", system=True)]
    with listening(inside, clients) as process:
        assert inside.run("ping", "-c", 1, CID).returncode == 0
        yield process


@needs_groups
def test_memory_is_that_of_all_its_commands(listener, inside):
    """Each alone has room; the second finds what a job of another session has taken."""
    some = MEMORY_MIB * 2 // 3
    assert sh(inside, LARGE.format(some)).returncode == 0
    job = sh(inside, HELD.format(some), "-d").stdout.decode().strip()
    with following(inside, job) as lines:
        assert lines.readline() == b"has it\n"
    [killed] = files_of(listener, "memory.oom_control") or files_of(listener, "memory.events")
    assert "oom_kill 0\n" in killed.read_text()
    sh(inside, LARGE.format(some))  # the kernel picks one of the two
    assert "oom_kill 1\n" in killed.read_text()
    assert sh(inside, LARGE.format(2 * MEMORY_MIB)).returncode == 137
    assert sh(inside, LARGE.format(2 * MEMORY_MIB), identity="bob").returncode == 0  # who has no limit


@needs_groups
def test_processes_are_counted_however_they_hide_and_end_with_the_listener(listener, inside):
    job = sh(inside, HIDDEN, "-d").stdout.decode().strip()
    with following(inside, job) as lines:
        assert [lines.readline() for _ in range(2)] == [b"hidden\n"] * 2
    for _ in range(TASKS):  # each comes in alone, up to as many
        last = sh(inside, "exec sleep 600", "-d")
        if last.returncode != 0:
            break
        job = last.stdout.decode().strip()
    assert last.returncode == 255
    assert f"alice has {TASKS} processes already" in last.stderr.decode()
    assert sh(inside, "echo in", identity="bob").stdout == b"in\n"
    found = [path.read_text().split() for path in files_of(listener, "cgroup.procs")]
    assert len(found) == len({one.directory for one in HIERARCHIES.values()})
    counted = set(map(int, found[0]))
    assert all(set(map(int, pids)) == counted for pids in found)  # every controller has all of them
    assert len(counted) == TASKS
    assert len([pid for pid in counted if os.getsid(pid) == pid]) == TASKS  # jobs, and those that have left theirs
    assert inside.run("kill", "--system", CID, job, identity="alice").returncode == 0
    with following(inside, job) as lines:
        assert not lines.read()
    crowd = sh(inside, CROWD)  # comes in at that one's place, and may not fork
    assert crowd.returncode != 0 and b"all" not in crowd.stdout
    listener.terminate()
    assert listener.wait(120) == 0
    assert not groups_of(listener)
    for pid in counted:
        with contextlib.suppress(FileNotFoundError):  # it may be nobody's zombie for a while
            assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@needs_groups
def test_processor_time_is_that_of_all_its_commands(listener, inside):
    [quota] = files_of(listener, "cpu.cfs_quota_us") or files_of(listener, "cpu.max")
    assert quota.read_text().split()[0] == "50000"
    begun, _, *used, end, _ = sh(inside, BUSY).stdout.split()
    minutes = [part.decode().removesuffix("s").split("m") for part in used]
    used_s = sum(60 * int(minute) + float(second) for minute, second in minutes)
    assert 0 < used_s / (float(end) - float(begun)) < 0.75


@needs_groups
def test_client_is_told_its_limits(listener, inside):
    for name, expected in (("alice", [MEMORY_MIB << 20, TASKS, 50]), ("bob", [0, 0, 0])):
        limits = json.loads(inside.run("info", "--json", CID, identity=name).stdout)["limits"]
        assert [limits[f"{what}_of_client"] for what in ("memory_bytes", "tasks", "cpu_percent")] == expected


@needs_groups
def test_nobody_leaves_the_group_and_root_does_not_get_in(inside):
    paths = " ".join(f"{directory}/cgroup.procs" for directory in {one.directory for one in HIERARCHIES.values()})
    clients = [
        grant(inside, "alice", system=True, user="1234", tasks_max=TASKS),
        grant(inside, "bob", system=True, user="0", tasks_max=TASKS),
    ]
    with listening(inside, clients):
        assert sh(inside, f"for path in {paths}; do (echo 0 > $path) && echo out; done; true").stdout == b""
        refused = sh(inside, "true", identity="bob")
    assert refused.returncode == 255
    assert b"which do not hold root" in refused.stderr


@pytest.mark.parametrize("limit", [{"memory_max": "1M"}, {"tasks_max": 5}, {"cpu_quota": "10%"}])
def test_limit_that_cannot_be_set_keeps_the_listener_from_starting(monkeypatch, limit):
    monkeypatch.setattr(client_groups, "find_hierarchies", lambda **_: {})
    key = next(iter(limit))
    with pytest.raises(ConfigError, match=f"^cannot use clients.yaml: alice: {key}: no cgroup with the controller"):
        ClientGroups.make([Grant(name="bob", allow=[]), Grant(name="alice", allow=[], **limit)], "clients.yaml")
    ClientGroups.make([Grant(name="bob", allow=[])], "clients.yaml").close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide the cgroups of this machine")
def test_listener_without_cgroups_says_so_and_ends(inside, tmp_path):
    clients = [grant(inside, "alice", tasks_max=5, user="1234")]
    hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"', "sh"]
    argv = [*hidden, BIN / "pipeline", "listen", "--nsm", inside.nsm_path, "--clients"]
    (tmp_path / "clients.yaml").write_text(yaml.safe_dump({"clients": clients}))
    done = subprocess.run([*argv, tmp_path / "clients.yaml"], env=inside.environment, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert (
        done.stderr.decode()
        .splitlines()[-1]
        .endswith("alice: tasks_max: no cgroup with the controller pids can be made here")
    )
