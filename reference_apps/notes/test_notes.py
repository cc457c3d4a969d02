# SPDX-License-Identifier: Apache-2.0
"""The notes app by itself: its root file system and its one script."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
Request = Callable[..., str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "notes.rootfs"
    subprocess.run([sys.executable, HERE / "make_rootfs", path], check=True)
    return path


def test_make_rootfs_does_not_depend_on_the_umask(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run([sys.executable, HERE / "make_rootfs", other], check=True, umask=0o077)

    def listing(top: Path) -> list[tuple[str, int, bytes]]:
        return sorted(
            (str(path.relative_to(top)), path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
            for path in top.rglob("*")
        )

    assert listing(root) == listing(other)


def test_make_rootfs_refuses_what_exists(root: Path) -> None:
    done = subprocess.run([sys.executable, HERE / "make_rootfs", root], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "it exists" in done.stderr


@pytest.fixture
def request_notes(root: Path) -> Request:
    if os.geteuid() != 0:
        pytest.skip("chroot needs root")
    (root / "data").mkdir()

    def send(query: str = "", body: bytes | None = None, length: str | None = None) -> str:
        env = {
            "PATH": "/bin",
            "QUERY_STRING": query,
            "REQUEST_METHOD": "GET" if body is None else "POST",
            "CONTENT_LENGTH": str(len(body or b"")) if length is None else length,
        }
        argv = ["/usr/sbin/chroot", root, "/www/cgi-bin/notes"]
        return subprocess.run(argv, env=env, input=body or b"", stdout=subprocess.PIPE, check=True).stdout.decode()

    return send


def test_a_note_is_stored_listed_and_read(request_notes: Request) -> None:
    assert "stored one" in request_notes("name=one", b"hello")
    assert "stored one" in request_notes("name=one", b"hello again")
    assert request_notes().endswith("\n\none\n".replace("\n\n", "\r\n\r\n"))
    assert request_notes("name=one").endswith("\r\n\r\nhello again")


@pytest.mark.parametrize(
    ("query", "body", "length", "status"),
    [
        ("name=../etc/passwd", None, None, "400"),
        ("name=.hidden", b"x", None, "400"),
        ("name=%2e%2e", b"x", None, "400"),
        ("name=" + "n" * 65, b"x", None, "400"),
        ("name=", None, None, "400"),
        ("other=x", None, None, "400"),
        ("name=none", None, None, "404"),
        ("name=big", b"x", "65537", "413"),
        ("name=big", b"x", "99999999999999999999", "413"),
        ("name=x", b"x", "-1", "411"),
        ("name=x", b"short", "6", "400"),
        ("", b"x", None, "405"),
    ],
)
def test_bad_requests_store_nothing(
    request_notes: Request, root: Path, query: str, body: bytes | None, length: str | None, status: str
) -> None:
    assert request_notes(query, body, length).startswith(f"Status: {status}\r\n")
    assert list((root / "data").iterdir()) == []
