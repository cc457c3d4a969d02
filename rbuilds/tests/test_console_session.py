# SPDX-License-Identifier: Apache-2.0
"""How a session runs lines: order, failures, questions, the local shell, secrets. Only the programs are fakes."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
from enclavekit_core.errors import EnclavekitError, InputError
from enclavekit_rbuilds.cli import COMMANDS
from enclavekit_rbuilds.console.flags import parse_flags
from enclavekit_rbuilds.console.lines import PipedLines
from enclavekit_rbuilds.console.masking import mask_line, mask_words
from enclavekit_rbuilds.console.output import Output
from enclavekit_rbuilds.console.process import Outcome
from enclavekit_rbuilds.console.report import render_report
from enclavekit_rbuilds.console.session import Session, StepFailed, run_lines
from enclavekit_rbuilds.console.surroundings import CurrentDirectory

DESCRIPTION = json.dumps({"EifVersion": 4, "Measurements": {"PCR0": "ab"}}).encode()


class FakePrograms:
    """Remembers what was run; `failing` words in an argv make it fail."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: tuple[str, ...] = ()

    def __call__(self, argv, out, err, *, stdin) -> Outcome:
        words = argv[4:] if argv[1:3] == ["-P", "-c"] else argv
        self.calls.append(shlex.join(words))
        if any(word in self.failing for word in words):
            err(b"it broke\n")
            return Outcome(7, "it broke")
        if words[0] == "describe":
            out(DESCRIPTION)
        elif "--output" in words and words[0] == "build":
            Path(words[words.index("--output") + 1]).write_bytes(b"EIF")
        return Outcome(0, "")


@pytest.fixture
def programs() -> FakePrograms:
    return FakePrograms()


@pytest.fixture
def session(programs, tmp_path, monkeypatch):
    """Return a function that makes a session of flags and lines of standard input, in a directory with one app."""
    monkeypatch.chdir(tmp_path)
    Path("web.dockerfile").write_text("FROM scratch\n")
    outputs = []

    def make(flags: str = "", stdin: str = "") -> Session:
        readable, writable = os.pipe()
        os.write(writable, stdin.encode())
        os.close(writable)
        settings = parse_flags(shlex.split(flags))
        output = Output(as_json=settings.json, terminal=str(tmp_path / "no-terminal"))
        outputs.append((output, readable))
        return Session(
            settings,
            CurrentDirectory(),
            PipedLines(readable),
            output,
            subcommands=[*COMMANDS, "kernel"],
            runner=programs,
        )

    yield make
    for output, readable in outputs:
        output.close()
        os.close(readable)


def run(session: Session) -> None:
    run_lines(session, session.settings.commands)


def verbs(programs: FakePrograms) -> list[str]:
    return [call.split()[0] for call in programs.calls]


def statuses(session: Session) -> list[tuple[str, str]]:
    return [(result.step, result.status) for result in session.results]


def test_each_of_several_commands_runs_once_and_in_order(session, programs) -> None:
    run(session("--cmd list_enclaves --cmd drop_recent_enclave --cmd list_enclaves --cmd 'explain E26'"))
    assert programs.calls == ["list", "drop --recent", "list", "explain E26"]


def test_flags_after_a_command_apply_to_it(session, programs) -> None:
    run(session("--cmd 'run_eif_image web' --memory 700 --cid 130"))
    assert programs.calls == ["run eif/web.eif --name web --memory 700 --cid 130"]


def test_image_gets_its_records_and_is_what_runs_next(session, programs) -> None:
    run(session("--cmd 'make eif web.dockerfile' --cmd run_eif_image"))
    assert verbs(programs) == ["build", "describe", "run"]
    assert programs.calls[2] == "run eif/web.eif --name web"
    assert json.loads(Path("eif/web.eif.pcr").read_text()) == {"Measurements": {"PCR0": "ab"}}
    assert Path("eif/web.eif.desc").read_bytes() == DESCRIPTION


def test_two_apps_have_two_images(session) -> None:
    Path("shop.dockerfile").write_text("FROM scratch\n")
    run(session("--cmd 'make_eif web.dockerfile' --cmd 'make_eif shop.dockerfile'"))
    assert {path.name for path in Path("eif").glob("*.eif")} == {"web.eif", "shop.eif"}


def test_failed_step_stops_everything_after_it(session, programs) -> None:
    programs.failing = ("kernel",)
    one = session("web.dockerfile --cmd make_all --cmd list_enclaves")
    with pytest.raises(StepFailed) as failure:
        run(one)
    assert failure.value.exit_code == 7 and failure.value.step == "kernel"
    assert verbs(programs) == ["kernel"]
    report = json.loads(render_report(one.results, str(failure.value)))
    assert report["steps"][0]["status"] == "failed" and report["steps"][0]["error"] == "it broke"
    assert report["steps"][0]["exit_code"] == 7 and report["failure"] == str(failure.value)


def test_failed_build_keeps_no_stale_record_beside_a_new_image(session, programs) -> None:
    run(session("web.dockerfile --cmd make_eif"))
    programs.failing = ("describe",)
    with pytest.raises(StepFailed):
        run(session("web.dockerfile --cmd make_eif"))
    assert not Path("eif/web.eif.pcr").exists() and not Path("eif/web.eif.desc").exists()


def test_make_all_goes_through_to_production_mode(session, programs) -> None:
    run(session("web.dockerfile --cmd make_all"))
    assert verbs(programs) == ["kernel", "framework", "build", "describe", "run"]
    assert "--debug" not in programs.calls[-1]


def test_made_kernel_goes_into_later_images(session, programs) -> None:
    run(session("web.dockerfile --cmd make_kernel --cmd make_eif"))
    assert "--kernel-source made" in programs.calls[1]


def test_clear_removes_what_was_made(session, programs) -> None:
    one = session("web.dockerfile --cmd make_eif --cmd make_clear")
    Path("eif").mkdir()
    Path("eif/foreign.eif").write_bytes(b"somebody else's")
    Path("kernel").mkdir()
    Path("kernel/bzImage").write_bytes(b"kernel")
    run(one)
    assert verbs(programs) == ["build", "describe", "cache"]
    assert {path.name for path in Path("eif").iterdir()} == {"foreign.eif", "rbuilds.log"}
    assert not Path("kernel/bzImage").exists()


def test_failed_clear_removes_nothing(session, programs) -> None:
    run(session("web.dockerfile --cmd make_eif"))
    programs.failing = ("cache",)
    with pytest.raises(StepFailed):
        run(session("--cmd make_clear"))
    assert Path("eif/web.eif").exists()


def test_dry_run_runs_and_writes_nothing(session, programs, capsys) -> None:
    one = session("web.dockerfile --dry-run --cmd make_all --cmd run_eif_image --cmd 'make clear'")
    run(one)
    assert programs.calls == [] and not Path("eif").exists()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("rbuilds kernel make") and len(printed) == 7
    assert {status for _, status in statuses(one)} == {"planned"}


def test_question_is_asked_for_each_step_and_n_skips_it(session, programs) -> None:
    one = session("web.dockerfile -q --cmd make_all", "n\nYES\ny\nno\n")
    run(one)
    assert verbs(programs) == ["framework", "build", "describe"]
    assert statuses(one) == [
        ("kernel", "skipped"),
        ("framework", "done"),
        ("image", "done"),
        ("records", "done"),
        ("run", "skipped"),
    ]


@pytest.mark.parametrize("stdin", ["", "maybe\n", "make_eif\n", "\n"])
def test_question_without_a_clear_answer_fails(session, programs, stdin) -> None:
    with pytest.raises(InputError):
        run(session("-q --cmd list_enclaves", stdin))
    assert programs.calls == []


def test_silent_pipe_fails_instead_of_hanging() -> None:
    readable, writable = os.pipe()
    try:
        with pytest.raises(InputError):
            PipedLines(readable, answer_timeout_s=0.01).answer("run it [y/n]?")
    finally:
        os.close(readable)
        os.close(writable)


def test_macros_leave_the_questions_as_they_were(session) -> None:
    asked = session("web.dockerfile -q --cmd make_all --cmd 'make enclave list_enclaves'", "y\n" * 5)
    run(asked)
    assert asked.settings.question
    plain = session("web.dockerfile --cmd make_all --cmd 'make_enclave list_enclaves'")
    run(plain)
    assert not plain.settings.question


@pytest.mark.parametrize(("answer", "calls"), [("6", ["list"]), ("list_enclaves", ["list"]), ("n", [])])
def test_make_enclave_asks_once_which(session, programs, answer, calls) -> None:
    run(session("--cmd make_enclave", f"{answer}\n"))
    assert programs.calls == calls


@pytest.mark.parametrize("answer", ["", "y", "0", "99", "make_all", "²"])
def test_make_enclave_takes_no_other_answer(session, programs, answer) -> None:
    with pytest.raises(InputError):
        run(session("--cmd make_enclave", f"{answer}\n"))
    assert programs.calls == []


def test_answers_that_nobody_asked_for(session, programs) -> None:
    one = session()
    run_lines(one, ["list_enclaves", "y", "list_enclaves"])
    assert programs.calls == ["list", "list"]
    with pytest.raises(InputError):  # somebody wanted to refuse what has run
        one.run_line("n")


def test_lines_of_flags_and_switches_change_what_follows(session, programs) -> None:
    one = session("web.dockerfile")
    run_lines(one, ["run_eif_image", "--memory 900 --cid 140", "run_eif_image", "forward_network", "make_eif", "q"])
    assert programs.calls[:2] == [
        "run eif/web.eif --name web",
        "run eif/web.eif --name web --memory 900 --cid 140",
    ]
    assert "--network forward" in programs.calls[2] and one.settings.question


def test_exit_ends_and_comments_are_nothing(session, programs) -> None:
    run_lines(session(), ["# a comment", "", "list_enclaves # now", "exit", "drop_enclaves_all"])
    assert programs.calls == ["list"]


def test_line_is_never_evaluated_by_a_shell(session, programs) -> None:
    run(session("--cmd 'drop_enclave \"$(touch evil);`id`\"'"))
    assert programs.calls == [shlex.join(["drop", "$(touch evil);`id`"])]
    for line in ("list_enclaves; touch evil", "touch evil", "list_enclaves && touch evil", "$(touch evil)"):
        with pytest.raises(EnclavekitError):
            session().run_line(line)


@pytest.mark.parametrize("line", ["lsh", "--lsh", "echo hi"])
def test_local_shell_needs_its_flag_at_the_start(session, programs, line) -> None:
    with pytest.raises(InputError):
        session().run_line(line)
    assert programs.calls == []


def test_local_shell_runs_unknown_lines_with_a_warning(session, programs, capsys) -> None:
    one = session("--lsh")
    run_lines(one, ["echo a | tr a b", "list_enclaves", "it's 'broken"])
    assert programs.calls == [
        shlex.join(["sh", "-c", "echo a | tr a b"]),
        "list",
        shlex.join(["sh", "-c", "it's 'broken"]),
    ]
    assert "echo a | tr a b" in capsys.readouterr().err
    one.run_line("lsh")
    with pytest.raises(InputError):
        one.run_line("echo again")
    with pytest.raises(InputError):  # a slip in a macro is no shell line
        session("--lsh").run_line("make kernl")


def test_failed_shell_line_stops(session, programs) -> None:
    programs.failing = ("false",)
    with pytest.raises(StepFailed) as failure:
        run(session("--lsh --cmd false --cmd list_enclaves"))
    assert failure.value.exit_code == 7 and programs.calls == ["sh -c false"]


def test_secrets_are_shown_nowhere(session, programs, capsys) -> None:
    secret = "s3cr3t"
    one = session(
        f"web.dockerfile --debug --lsh --json --cmd 'make_eif --env HUB={secret}' --cmd 'A_TOKEN={secret} true'"
    )
    run(one)
    assert any(secret in call for call in programs.calls), "the program itself gets it"
    shown = capsys.readouterr()
    log = Path("eif/rbuilds.log").read_text()
    assert secret not in shown.err + shown.out + log + render_report(one.results, None)
    assert "trace" in shown.err


@pytest.mark.parametrize(
    "line",
    [
        "build --env HUB=s3cr3t",
        "build --env=HUB=s3cr3t -e OTHER=s3cr3t",
        "curl -H 'Authorization: Bearer s3cr3t' https://x",
        "curl https://me:s3cr3t@host/x",
        "deploy --api-token s3cr3t",
        "DB_PASSWORD=s3cr3t true",
        "docker run -e KEY=s3cr3t x",
    ],
)
def test_secret_looking_values_are_masked(line) -> None:
    assert "s3cr3t" not in mask_line(line)
    assert "s3cr3t" not in " ".join(mask_words(["sh", "-c", line]))
    assert "s3cr3t" not in " ".join(mask_words(shlex.split(line)))


@pytest.mark.parametrize("line", ["make_eif web.dockerfile --signing-key keys/a.pem", "run_eif_image --cid 130"])
def test_plain_lines_are_shown_as_they_are(line) -> None:
    assert mask_line(line) == line
