# SPDX-License-Identifier: Apache-2.0
"""State on disk, console, ends, PCRs at boot, error texts: the pure parts around the process machine."""

import hashlib
import os
import signal
import subprocess
import threading

import pytest
from enclavekit_core.exit_report import ExitReport, LastLine
from enclavekit_core.nitro_errors import NITRO_ERRORS
from enclavekit_core.processes import ProcessId, boot_id, identify, is_alive
from enclavekit_emulator.boot_pcrs import boot_pcrs
from enclavekit_emulator.console import ConsoleBuffer, printable
from enclavekit_emulator.enclave_end import describe_init_end, is_orderly, make_end_record
from enclavekit_emulator.leftovers import remove_leftovers, remove_tree
from enclavekit_emulator.memory_limit import (
    create_memory_group,
    join_memory_group,
    plan_hierarchies,
    remove_memory_group,
)
from enclavekit_emulator.nitro_errors import NitroError, explain
from enclavekit_emulator.state import MAX_ENDED_RECORDS, EnclaveRecord, EnclaveStore, EndRecord


@pytest.fixture
def store(tmp_path):
    for name in ("registry", "fabric"):
        (tmp_path / name).mkdir()
    return EnclaveStore(str(tmp_path))


def make_record(**changes):
    fields = {
        "enclave_id": "i-0000000000000001-enc1",
        "name": "app",
        "cid": 16,
        "slot": 0,
        "memory_mib": 64,
        "cpu_ids": (1, 2),
        "debug_mode": False,
        "eif_path": "/x/app.eif",
        "boot_id": boot_id(),
        "supervisor": identify(os.getpid()),
    }
    return EnclaveRecord(**{**fields, **changes})


def test_record_survives_the_disk(store):
    record = make_record(init=ProcessId(7, 8), measurements={"PCR0": "00"}, image={"ImageName": "app"})
    os.mkdir(store.directory(record.enclave_id))
    store.write(record)
    assert store.read(record.enclave_id) == record
    assert store.running() == [record]


def test_record_of_a_dead_supervisor_or_another_boot_is_not_running():
    assert make_record().is_alive()
    me = identify(os.getpid())
    assert not make_record(supervisor=ProcessId(me.pid, me.start_ticks + 1)).is_alive()
    assert not make_record(boot_id="another").is_alive()


def test_leftovers_are_removed_and_the_living_kept(store):
    alive = make_record(enclave_id="i-1-enc1", cid=16)
    dead = make_record(enclave_id="i-1-enc2", cid=17, supervisor=ProcessId(os.getpid(), 1))
    for record in (alive, dead):
        os.mkdir(store.directory(record.enclave_id))
        store.write(record)
        os.makedirs(store.fabric_directory(record.cid) + "/parent")
        with open(store.registry_record(record.cid), "w") as out:
            out.write("{}")
    os.mkdir(store.directory("i-1-enc3"))  # killed before its first record
    with store.locked():
        assert set(remove_leftovers(store)) == {dead.enclave_id, "i-1-enc3"}
    assert os.listdir(store.runtime_dir + "/fabric") == ["16"]
    assert os.listdir(store.runtime_dir + "/registry") == ["16.json"]
    assert store.enclave_ids() == [alive.enclave_id]


def test_cids_are_chosen_from_16_and_taken_ones_skipped(store):
    assert store.choose_cid() == 16
    os.mkdir(store.fabric_directory(16))
    with open(store.registry_record(17), "w") as out:
        out.write("{}")
    assert store.choose_cid() == 18


def test_ends_are_kept_for_a_while(store):
    for number in range(MAX_ENDED_RECORDS + 3):
        store.write_end(EndRecord(f"i-1-enc{number}", "app", 16, "it powered off", number % 2))
        os.utime(f"{store.ended}/i-1-enc{number}.json", ns=(number, number))
    assert len(os.listdir(store.ended)) == MAX_ENDED_RECORDS
    assert store.find_end(name="app").enclave_id == f"i-1-enc{MAX_ENDED_RECORDS + 2}"
    assert store.find_end(enclave_id="i-1-enc0") is None


def test_group_goes_with_all_that_the_enclave_made_below_it():
    """As PID 1 leaves them when it is killed: a group per unit, and processes in them that nobody waits for."""
    top = create_memory_group(f"test-{os.getpid()}", 64 << 20)
    if top is None:
        pytest.skip("this machine has no memory groups for this user")
    unit = os.path.join(top, "enclave-1", "unit-app")
    os.makedirs(unit)
    os.makedirs(os.path.join(top, "enclave-1", "unit-other", "deeper"))
    left = subprocess.Popen(["sleep", "1000"])
    try:
        assert join_memory_group(unit, left.pid)
        reaper = threading.Thread(target=left.wait, daemon=True)  # a zombie keeps its group busy
        reaper.start()
        remove_memory_group(top)
        assert not os.path.exists(top)
        assert left.wait() == -signal.SIGKILL
    finally:
        left.kill()
    remove_memory_group(top)  # idempotent
    with pytest.raises(ValueError, match="not one of ours"):
        remove_memory_group(os.path.dirname(top) + "/somebody-else")


def test_remove_tree_follows_no_link_and_minds_no_depth(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("stays")
    top = tmp_path / "fabric"
    (top / ".removed-1" / "x").mkdir(parents=True)  # a name that the remover itself would like to use
    os.symlink(precious, top / "link")
    os.symlink(precious / "file", top / ".removed-1" / "x" / "link")
    os.mkfifo(top / "pipe")
    here = os.open(top, os.O_RDONLY)
    for _ in range(3000):  # far beyond the recursion limit and PATH_MAX
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    remove_tree(str(top))
    assert not top.exists()
    assert (precious / "file").read_text() == "stays"


def test_identify_tells_a_reused_pid():
    me = identify(os.getpid())
    assert is_alive(me)
    assert not is_alive(ProcessId(me.pid, me.start_ticks - 1))


def test_console_buffer_is_bounded():
    buffer = ConsoleBuffer(10)
    for number in range(100):
        buffer.append(b"%02d" % number)
    assert buffer.read() == b"9596979899"


def test_console_lines_are_harmless():
    buffer = ConsoleBuffer()
    buffer.append(b"one\n\n\x1b[2Jtwo\xff\nthree\n")
    assert buffer.last_lines(2) == ("?[2Jtwo\N{REPLACEMENT CHARACTER}", "three")
    assert len(printable("x" * 5000)) == 400


POWERED_OFF, RESTARTED, EXITED_3 = signal.SIGINT, signal.SIGHUP, 3 << 8


def end_of(status, report, *, out_of_memory=False):
    return make_end_record(
        make_record(), describe_init_end(status), report,
        orderly=is_orderly(status), terminated=False, out_of_memory=out_of_memory,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "report", "expected"),
    [
        (POWERED_OFF, None, 0),
        (RESTARTED, None, 0),
        (EXITED_3, None, 255),  # on Nitro: a kernel panic
        (signal.SIGKILL, None, 255),
        (POWERED_OFF, ExitReport("app", 7, None, ""), 7),
        (POWERED_OFF, ExitReport("app", None, 15, ""), 143),
        (EXITED_3, ExitReport("app", 0, None, ""), 0),
        (POWERED_OFF, ExitReport(None, None, None, "a unit could not start"), 255),
    ],
)
def test_command_status_of_an_end(status, report, expected):
    end = end_of(int(status), report)
    assert end.command_status() == expected


def test_what_pid_1_reported_is_kept():
    lines = (LastLine("app", "stderr", "boom"),)
    end = end_of(int(POWERED_OFF), ExitReport("app", None, 9, "r", "out-of-memory", True, 1.5, lines)).to_json()
    assert (end["cause"], end["oom"], end["uptime_s"]) == ("out-of-memory", True, 1.5)
    assert end["last_lines"] == [{"unit": "app", "stream": "stderr", "text": "boom"}]


def test_out_of_memory_is_the_reason_and_never_a_success():
    end = end_of(int(POWERED_OFF), None, out_of_memory=True)
    assert "64 MiB" in end.reason
    assert end.command_status() == 255


MEASURED = {"HashAlgorithm": "x", "PCR0": "01" * 48, "PCR1": "02" * 48, "PCR2": "03" * 48}
ENCLAVE_ID = "i-0123456789abcdef-enc0123456789abcdef"


def test_boot_pcrs():
    pcr4 = hashlib.sha384(bytes(48) + b"i-0123456789abcdef").digest()
    assert boot_pcrs(MEASURED, ENCLAVE_ID, debug_mode=False) == {
        0: b"\1" * 48,
        1: b"\2" * 48,
        2: b"\3" * 48,
        4: pcr4,
    }
    debug = boot_pcrs({**MEASURED, "PCR8": "08" * 48}, ENCLAVE_ID, debug_mode=True)
    assert debug == {0: bytes(48), 1: bytes(48), 2: bytes(48), 4: pcr4, 8: b"\10" * 48}


MOUNTS = """\
30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
31 23 0:27 / /cg/memory rw shared:9 - cgroup cgroup rw,memory
32 23 0:28 / /cg/cpu rw - cgroup cgroup rw,cpu
"""


def test_memory_hierarchies():
    v2, v1 = plan_hierarchies(MOUNTS, "4:memory:/mine\n0::/user.slice/me.scope\n")
    assert v2.parents == ("/sys/fs/cgroup/user.slice", "/sys/fs/cgroup/user.slice/me.scope", "/sys/fs/cgroup")
    assert v2.limit_file == "memory.max"
    assert v1.parents == ("/cg/memory/mine", "/cg/memory")
    assert v1.limit_file == "memory.limit_in_bytes"
    assert plan_hierarchies(MOUNTS, "1:cpu:/\n") == []


def test_error_is_the_number():
    error = NitroError(26, "cannot run a.eif: it is too large", ("  console: x",))
    assert error.exit_code == 26
    assert str(error) == ("[ E26 ] Insufficient memory requested: cannot run a.eif: it is too large\n  console: x")
    assert all(explain(number).startswith(f"[ E{number:02} ]") for number in NITRO_ERRORS)
