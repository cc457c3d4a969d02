# SPDX-License-Identifier: Apache-2.0
"""Memory stays the same however large the image is: measured in processes of their own."""

import os
import shutil
import subprocess
import sys

import pytest
from enclavekit_eif.newc import MAX_FILE_BYTES, TRAILER
from enclavekit_eif.pack import encode_header

MAX_PEAK_MB = 120  # the interpreter with its libraries takes 30 to 50; a large image's files would not fit by far
PEAK = """
import re, sys
from enclavekit_eif.cli import main
status = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(f"peak {peak}", file=sys.stderr)
sys.exit(status)
"""


def peak_mb(*argv):
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, argv)], capture_output=True, text=True)
    assert done.returncode in (0, 1, 6), done.stderr
    return int(done.stderr.split("peak ")[1]) / 1000


def sparse_archive(path, sizes):
    """An archive whose files are holes: it takes no disk."""
    with open(path, "wb") as out:
        for number, size in enumerate(sizes):
            out.write(encode_header(b"file-%d" % number, number + 1, 0o100644, (0, 0), 1, 0, size))
            out.seek(size + -size % 4, os.SEEK_CUR)
        out.write(encode_header(TRAILER, 0, 0, (0, 0), 1, 0, 0))


def check_all_commands(tmp_path, key_files, sizes):
    certificate, key = key_files()
    (tmp_path / "kernel").write_bytes(b"kernel")
    sparse_archive(tmp_path / "large", sizes)
    build = ["build", "--kernel", tmp_path / "kernel", "--cmdline", "x", "--ramdisk", tmp_path / "large", "--output"]
    one, other = tmp_path / "one.eif", tmp_path / "other.eif"
    assert peak_mb(*build, one) < MAX_PEAK_MB
    with open(tmp_path / "large", "r+b") as out:
        out.seek(sizes[0] // 2)
        out.write(b"one byte")
    assert peak_mb(*build, other) < MAX_PEAK_MB
    (tmp_path / "large").unlink()
    assert peak_mb("diff", one, other) < MAX_PEAK_MB
    other.unlink()
    for words in (
        ["describe", one],
        ["check", one],
        ["size", one],
        ["verify", one],
        ["sign", one, "--key", key, "--certificate", certificate],
        ["verify", one, "--certificate", certificate],
    ):
        assert peak_mb(*words) < MAX_PEAK_MB, words


def test_memory_does_not_follow_the_image(tmp_path, key_files):
    check_all_commands(tmp_path, key_files, [250 << 20])


@pytest.mark.long
def test_memory_does_not_follow_an_image_of_5_gb(tmp_path, key_files):
    if shutil.disk_usage(tmp_path).free < 20 << 30:
        pytest.skip("needs 20 GB of disk")
    check_all_commands(tmp_path, key_files, [MAX_FILE_BYTES - 3, 1 << 30])


def test_peak_is_seen_at_all(tmp_path):
    """The measure itself: holding 200 MB shows."""
    code = PEAK.replace("status = main(sys.argv[1:])", "held = b'x' * 200_000_000; status = 0")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(done.stderr.split("peak ")[1]) > 200_000
