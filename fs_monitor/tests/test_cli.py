# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from enclavekit_fs_monitor.cli import build_parser
from enclavekit_fs_monitor.config import Config


def run(*flags):
    argv = [sys.executable, "-m", "enclavekit_fs_monitor", *flags]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-d", "{tmp}/none"], "cannot watch {tmp}/none: no such file or directory"),
        (["-d", "{tmp}/file"], "cannot watch {tmp}/file: not a directory"),
        (["-d", "{tmp}", "--credentials", "{tmp}/none"], "cannot use {tmp}/none: no such file or directory"),
        (["-d", "{tmp}", "--credentials", "{tmp}/file"], "cannot use {tmp}/file: "),
    ],
)
def test_what_cannot_be_used(tmp_path, flags, message):
    (tmp_path / "file").write_text("user: x\n")
    done = run(*(flag.format(tmp=tmp_path) for flag in flags))
    assert done.returncode == 2
    assert done.stderr.startswith("fs-monitor: " + message.format(tmp=tmp_path))
    assert done.stderr.count("\n") == 1


def test_flags_are_those_of_the_rust_tool():
    argv = ["--directory", "/data", "--ignore-file", "/i", "--nats-url", "nats://h:1", "--kv-bucket-name", "b"]
    args = build_parser().parse_args(argv)
    assert (args.directory, args.ignore_file, args.nats_url, args.kv_bucket_name) == (
        ["/data"],
        "/i",
        "nats://h:1",
        "b",
    )
    assert build_parser().parse_args(["-d", "/a", "-d", "/b", "-i", "x"]).directory == ["/a", "/b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("root: /data\n", "root"),
        ("roots: [/tmp, /tmp/x]\n", "lies in"),
        ("replicas: 9\n", "replicas"),
        ("quiet_s: fast\n", "quiet_s"),
    ],
)
def test_bad_configuration_is_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    done = run("-c", str(tmp_path / "c.yaml"))
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_readme_has_every_flag_key_and_default():
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    flags = [flag for action in build_parser()._actions for flag in action.option_strings if flag.startswith("--")]
    assert [flag for flag in flags if f"`{flag}`" not in text] == ["--help"]
    for field in msgspec.structs.fields(Config):
        row = next(line for line in text.splitlines() if f"| `{field.name}` |" in line)
        values = field.default if isinstance(field.default, tuple) else [field.default]
        for value in values:
            shown = f"{value:g}" if isinstance(value, float) else str(value or "")
            assert shown in row.split("|")[3], field.name
