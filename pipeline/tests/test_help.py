# SPDX-License-Identifier: Apache-2.0
"""What `--help` says, of all subcommands."""

import pytest
from enclavekit_pipeline import __version__
from enclavekit_pipeline.cli import COMMANDS, build_parser, main


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_has_to_be_given_and_what_each_flag_does(command, capsys):
    with pytest.raises(SystemExit):
        build_parser(names=(command,)).parse_args([command, "--help"])
    usage, _, rest = capsys.readouterr().out.partition("\n")
    assert usage.startswith(f"usage: pipeline {command} [flags]")
    assert rest.startswith("\n"), "a usage of more than one line is read by nobody"
    parser = build_parser(names=(command,))._subparsers._group_actions[0].choices[command]
    assert all(action.help for action in parser._actions)


def test_flag_that_is_none_is_answered_with_the_subcommands_usage(capsys):
    assert main(["cp", "-r", "here", "16:/there"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "usage: pipeline cp [flags] SRC DST",
        "pipeline cp: error: unrecognized arguments: -r",
    ]
    assert main(["exec"]) == 255
    assert "bare_command" not in capsys.readouterr().err


def test_version_and_help_of_the_whole(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pipeline {__version__}\n"
    assert main([]) == 2
    assert "exec " in capsys.readouterr().err


def test_every_command_is_in_the_help():
    assert [name for name in COMMANDS if name not in build_parser().format_help()] == []
