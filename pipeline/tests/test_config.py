# SPDX-License-Identifier: Apache-2.0
"""The Rust framework's configuration file: what it means, and what it is said not to mean."""

import pytest
from enclavekit_pipeline.cli import parse_words
from enclavekit_pipeline.commands.general import General, take_general

from .conftest import CID

SHIPPED = """
cid: 127
port: 53000
buffers:
  buf_max_len_file_io: 7340032
  buf_max_len_file_path: 8192
  buf_max_len_cmd: 8192
  buf_max_len_cmd_io: 10240
  backlog: 128
  max_connection_attempts: 10
"""
LEGACY = "--insecure-legacy-slc"


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "pipeline.config.yaml").write_text(text)
        return str(tmp_path / "pipeline.config.yaml")

    return write


@pytest.mark.parametrize(
    ("words", "general", "rest"),
    [
        (["exec", "-c", "x"], General(), ["exec", "-c", "x"]),
        (["-c", "f", "exec"], General("f"), ["exec"]),
        (["--config=f", LEGACY, "run"], General("f", True), ["run"]),
        ([LEGACY], General(None, True), []),
        (["--help"], General(), ["--help"]),
    ],
)
def test_flags_before_the_subcommand(words, general, rest):
    assert take_general(words) == (general, rest)


@pytest.mark.parametrize("words", [["-c"], ["--config="], ["-c", "a", "-c", "b", "exec"]])
def test_configuration_flag_needs_one_file(command_line, words):
    assert command_line(*words)[0] == 2


def test_cid_and_port_are_defaults(written, capsys):
    general = General(written("cid: 127\nport: 5000\n"))
    args = parse_words(["exec", "--", "ls"], general)
    assert (args.cid, args.port, args.argv) == ("127", 5000, ["ls"])
    args = parse_words(["exec", "--port", "6", "9", "--", "ls"], general)
    assert (args.cid, args.port) == ("9", 6)
    assert parse_words(["listen"], general).port == 5000
    args = parse_words(["run", "--command", "ls"], General(general.config, True))
    assert (args.cid, args.port) == ("127", 5000)
    assert capsys.readouterr().err == ""


def test_shipped_file_is_read_and_what_means_nothing_is_named_in_one_line(written, capsys):
    args = parse_words(["forward", "-L", "1=2"], General(written(SHIPPED)))
    assert (args.cid, args.port) == ("127", 53000)
    (line,) = capsys.readouterr().err.splitlines()
    for key in ("buf_max_len_file_io", "buf_max_len_file_path", "buf_max_len_cmd,", "buf_max_len_cmd_io", "backlog"):
        assert f"buffers.{key}" in line
    assert "buffers.max_connection_attempts" in line


@pytest.mark.parametrize(
    "text",
    [
        "cid: 3",
        "cid: any",
        "port: -1",
        "port: 4294967296",
        "ports: 1",
        "buffers: {size: 1}",
        "buffers: {backlog: x}",
        "- 1",
    ],
)
def test_files_that_are_refused(command_line, written, text):
    status, output = command_line("-c", written(text), "cp", "a", "9:/b")
    assert status == 2
    assert output.err.startswith("pipeline: cannot use ")
    assert len(output.err.splitlines()) == 1


def test_missing_file_is_execs_own_failure(command_line, tmp_path):
    assert command_line("-c", tmp_path / "no", "exec", CID, "--", "ls")[0] == 255
