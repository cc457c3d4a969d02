# SPDX-License-Identifier: Apache-2.0
import itertools
import os
import subprocess
import sys

import pytest
from enclavekit_enclave_init.logs.console import MAX_BACKLOG_BYTES, Console
from enclavekit_enclave_init.logs.output import MAX_LINE_BYTES, LineSplitter, LogFile
from enclavekit_enclave_init.logs.records import Batch
from hypothesis import given
from hypothesis import strategies as st


def batch(*lines):
    return Batch(1, 0.0, "a", "stdout", b"".join(line + b"\n" for line in lines))


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_line_splitter_accepts_any_split(data, cuts):
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    splitter = LineSplitter()
    lines = [line for a, b in itertools.pairwise(edges) for line in splitter.feed(data[a:b])]
    lines += splitter.feed_eof()
    expected = data.split(b"\n")
    assert lines == (expected if expected[-1] else expected[:-1])
    assert splitter.feed_eof() == []


@pytest.mark.parametrize("step", [1000, MAX_LINE_BYTES, 100_000])
def test_line_splitter_cuts_what_has_no_end(step):
    splitter, data, lines = LineSplitter(), b"x" * 50_000, []
    for at in range(0, len(data), step):
        lines += splitter.feed(data[at : at + step])
    lines += splitter.feed_eof()
    assert b"".join(lines) == data
    assert all(len(line) < MAX_LINE_BYTES + step and len(line) <= max(MAX_LINE_BYTES, step + 8000) for line in lines)


def test_line_splitter_bounds_complete_lines():
    assert [len(line) for line in LineSplitter().feed(b"x" * (MAX_LINE_BYTES + 1) + b"\n\n")] == [MAX_LINE_BYTES, 1, 0]


def test_log_file_rotates(tmp_path):
    path = tmp_path / "a.log"
    log = LogFile(str(path), max_bytes=60, max_files=3)
    for number in range(8):
        log.write(batch(b"line %d" % number))
    log.close()
    files = [path, tmp_path / "a.log.1", tmp_path / "a.log.2"]
    assert sorted(tmp_path.iterdir()) == files
    # 29 bytes each: two to a file
    assert [line[-1:] for file in reversed(files) for line in file.read_text().splitlines()] == list("234567")
    assert path.read_text().startswith("[1970-01-01 00:00:00] line 6\n")


def test_log_file_alone_is_truncated_and_an_older_one_continued(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("old\n")
    log = LogFile(str(path), max_bytes=40, max_files=1)
    log.write(batch(b"1"))
    assert len(path.read_text().splitlines()) == 2
    log.write(batch(b"2"))
    assert [line[-1] for line in path.read_text().splitlines()] == ["2"]


def test_log_file_that_cannot_be_written_counts_its_losses(tmp_path):
    log = LogFile(str(tmp_path / "none" / "a.log"), 1000, 2)
    log.write(batch(b"1", b"2"))
    assert log.lost_lines == 2


def test_full_disk_counts_its_losses():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    log = LogFile("/dev/full", 1000, 1)
    log.write(batch(b"1", b"2"))
    assert log.lost_lines == 2
    log.close()


def test_log_file_tells_what_a_full_disk_cost_it(tmp_path):
    # a file size limit cuts a write as a full disk does
    path = tmp_path / "a.log"
    script = (
        "import resource, signal, sys\n"
        "from enclavekit_enclave_init.logs.output import LogFile\n"
        "from enclavekit_enclave_init.logs.records import Batch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "log = LogFile(sys.argv[1], 100000, 1)\n"
        "write = lambda *lines: log.write(Batch(1, 0.0, 'a', 'stdout', b''.join(line + b'\\n' for line in lines)))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40, 1000))\n"
        "write(b'1', b'2')\n"
        "write(b'3')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write(b'4')\n"
        "print(log.lost_lines)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"
    assert [line[22:] for line in path.read_text().splitlines()] == [
        "1", "2 lines before this one could not be written", "4",
    ]  # fmt: skip


def test_console_never_blocks_and_says_what_it_dropped():
    reader, writer = os.pipe()
    told = []
    console = Console(writer, lambda fd, waiting: told.append(waiting))
    line = b"x" * 999
    for _ in range(2000):
        console.write_lines("u", [line])
    assert told == [True]
    assert 2000 - console.dropped_lines <= (MAX_BACKLOG_BYTES + 65536) // 1000 + 66
    dropped, seen = console.dropped_lines, b""
    os.set_blocking(reader, False)
    while True:
        try:
            seen += os.read(reader, 65536)
        except BlockingIOError:
            break
        console.flush()
    assert told == [True, False]
    lines = seen.splitlines()
    assert lines[-1].startswith(b"enclave-init: %d console lines" % dropped)
    assert set(lines[:-1]) == {b"u: " + line} and len(lines) - 1 + dropped == 2000
    assert os.get_blocking(writer), "the descriptor of whoever started us must stay as it was"


def test_console_prints_no_control_characters():
    reader, writer = os.pipe()
    Console(writer).write_lines("u", [b"a\x1b[2Jb\rc\td\xc3\xa9"])
    assert os.read(reader, 100) == b"u: a?[2Jb?c\td\xc3\xa9\n"


def test_console_without_reader_is_silent():
    reader, writer = os.pipe()
    console = Console(writer)
    os.close(reader)
    console.write_lines("u", [b"x"] * 10)
    console.flush_for(0.1)
