# SPDX-License-Identifier: Apache-2.0
"""A real PID 1 joins an image's split files before its units start, and boots no image whose parts are damaged."""

import hashlib

import pytest
from enclavekit_core.split_files import LIST_PATH, FileList, SplitFile, encode_file_list

CONTENT = bytes(range(256)) * 1000
CHECK = f"""ExecStart = ["sh", "-c", "test -z \\"$(ls /.split 2>/dev/null)\\" && sha256sum < /app/big"]
OnExit = "poweroff"
# {len(CONTENT)}
"""


@pytest.fixture
def split(machine):
    folder = machine.image / ".split/0000"
    folder.mkdir(parents=True)
    (machine.image / "app").mkdir()
    parts = []
    for number, start in enumerate(range(0, len(CONTENT), 100_000)):
        (folder / f"{number:04d}").write_bytes(CONTENT[start : start + 100_000])
        parts.append(f"/.split/0000/{number:04d}")
    file = SplitFile(("/app/big",), len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), 0o600, 0, 0, 0, tuple(parts))
    path = machine.image / LIST_PATH[1:]
    path.parent.mkdir(parents=True)
    path.write_bytes(encode_file_list(FileList((file,))))
    machine.unit("app", CHECK)
    return machine


def test_the_app_finds_its_file_whole(split):
    report = split.boot().wait()
    assert report["exit_status"] == 0, split.console
    assert split.log("app") == [f"{hashlib.sha256(CONTENT).hexdigest()}  -"]


def test_damaged_parts_end_the_boot_with_the_reason(split):
    part = split.image / ".split/0000/0001"
    part.write_bytes(part.read_bytes()[:-1] + b"\xff")
    report = split.boot().wait()
    assert report["unit"] is None and "/app/big" in report["reason"]
    assert split.heartbeat.received == []
    assert not (split.out / "app.log").exists()
    assert any("/app/big" in line for line in split.console)


def test_a_list_from_the_future_ends_the_boot(split):
    (split.image / LIST_PATH[1:]).write_text('{"version":2}')
    report = split.boot().wait()
    assert report["unit"] is None and LIST_PATH in report["reason"]
    assert split.heartbeat.received == []
