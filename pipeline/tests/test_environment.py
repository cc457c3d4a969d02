# SPDX-License-Identifier: Apache-2.0
"""What -e and --env-file say; values need not stand on a command line, where everybody reads them."""

import pytest
from enclavekit_core.errors import ConfigError
from enclavekit_pipeline.commands.target import parse_environment

OURS = {"TOKEN": "secret", "EMPTY": ""}


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        (["A=b"], {"A": "b"}),
        (["A=b=c", "B="], {"A": "b=c", "B": ""}),
        (["TOKEN", "EMPTY", "UNSET"], {"TOKEN": "secret", "EMPTY": ""}),
        (["A=1", "A=2"], {"A": "2"}),
    ],
)
def test_settings(settings, environment):
    assert parse_environment(settings, [], OURS) == environment


def test_files_come_first_and_have_comments(tmp_path):
    (tmp_path / "a").write_text("# of the app\nA=1\n\n  B=2 # kept\nTOKEN\n")
    (tmp_path / "b").write_text("A=3")
    files = [str(tmp_path / name) for name in "ab"]
    assert parse_environment(["B=4"], files, OURS) == {"A": "3", "B": "4", "TOKEN": "secret"}


@pytest.mark.parametrize("content", [b"=x\n", b"\xff=1\n", None])
def test_bad_settings_and_files(tmp_path, content):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(ConfigError):
        parse_environment([], [str(tmp_path / "file")], OURS)
    with pytest.raises(ConfigError):
        parse_environment(["=x"], [], OURS)
