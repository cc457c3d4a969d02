# SPDX-License-Identifier: Apache-2.0
"""rbuilds.sh as scripts and people call it: real processes, pipes and terminals."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from enclavekit_rbuilds.console.repl import candidates

SCRIPT = Path(__file__).resolve().parents[1] / "rbuilds.sh"
TIMEOUT_S = 60
FAILS = "explain E9999"  # a real subcommand that ends with an error, at once and without anything else
WORKS = "explain E26"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Ours, with an installed rbuilds on PATH for a checkout without .venv, and state of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENCLAVEKIT_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "XDG_STATE_HOME": str(tmp_path / "state"), "INPUTRC": "/dev/null", "TERM": "dumb"}


@pytest.fixture
def call(environment, tmp_path):
    """Return a function that calls the script in a directory with a space in its name."""
    here = tmp_path / "my apps"
    here.mkdir()

    def run(*words: str, stdin: str | None = None, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(script), *words],
            cwd=here,
            env=environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            # a terminal of the person who runs the tests is none of ours
            start_new_session=True,
        )

    return run


def steps(done: subprocess.CompletedProcess[str]) -> list[tuple[list[str], str]]:
    return [(step["argv"], step["status"]) for step in json.loads(done.stdout)["steps"]]


def test_script_is_plain_sh_and_executable() -> None:
    assert SCRIPT.read_text().startswith("#!/bin/sh\n") and os.access(SCRIPT, os.X_OK)
    subprocess.run(["sh", "-n", SCRIPT], check=True, timeout=TIMEOUT_S)


def test_piped_commands_end_with_the_input(call) -> None:
    done = call("--json", stdin=f"# a job\n{WORKS}\n\nexplain E39")  # the last line without its end
    assert done.returncode == 0, done.stderr
    assert steps(done) == [(["rbuilds", "explain", "E26"], "done"), (["rbuilds", "explain", "E39"], "done")]


def test_nothing_to_do_is_an_error(call) -> None:
    for stdin in (None, "", "\n\n"):
        assert call(stdin=stdin).returncode == 2


def test_steps_do_not_swallow_the_lines_that_follow(call) -> None:
    padding = "# more than one read takes\n" * 1000
    done = call("--lsh", "--json", stdin=f"cat\n{padding}{WORKS}\n")
    assert [status for _, status in steps(done)] == ["done", "done"] and done.returncode == 0


@pytest.mark.parametrize("mode", ["--cmd", "stdin"])
def test_failed_step_ends_the_run_with_its_exit_code_and_name(call, mode) -> None:
    lines = [WORKS, FAILS, WORKS]
    words = [word for line in lines for word in ("--cmd", line)] if mode == "--cmd" else []
    done = call("--json", *words, stdin=None if words else "\n".join(lines))
    assert [status for _, status in steps(done)] == ["done", "failed"]
    report = json.loads(done.stdout)
    assert done.returncode == report["steps"][1]["exit_code"] != 0
    assert report["steps"][1]["step"] == "explain" and "explain" in report["failure"]


@pytest.mark.parametrize("words", [["--cmd", "make kernl"], ["--cmd", "no_such_thing"], ["--networ"], ["1"], ["--cmd"]])
def test_what_is_not_known_is_exit_code_2(call, words) -> None:
    done = call(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_commands_of_several_words_work_with_cmd(call) -> None:
    done = call("--json", "--dry-run", "--cmd", "make eif web.dockerfile", "--cmd", "make apps")
    assert [argv[:2] for argv, _ in steps(done)] == [
        ["rbuilds", "build"],
        ["eif", "describe"],
        ["rbuilds", "framework"],
    ]


def test_words_pass_through_sh_unharmed(call) -> None:
    name = "a 'b' \"c\" $HOME `id` *.dockerfile"
    done = call("--json", "--dry-run", "--dockerfile", name, "--cmd", "make_eif")
    assert steps(done)[0][0][3] == name


def test_answers_come_from_the_same_pipe(call) -> None:
    done = call("-q", "--json", stdin=f"{WORKS}\ny\n{WORKS}\nn\n")
    assert [status for _, status in steps(done)] == ["done", "skipped"] and done.returncode == 0
    for words, stdin in (([], f"{WORKS}\n"), (["--cmd", WORKS], None)):
        assert call("-q", *words, stdin=stdin).returncode == 2


def test_closed_standard_input_is_no_answer(environment, tmp_path) -> None:
    code = f"exec '{SCRIPT}' -q --cmd '{WORKS}' <&-"
    assert subprocess.run(["sh", "-c", code], cwd=tmp_path, env=environment, timeout=TIMEOUT_S).returncode == 2


def test_script_is_found_through_links_and_from_anywhere(call, tmp_path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/direct").symlink_to(SCRIPT)
    (tmp_path / "bin/rb").symlink_to("direct")
    assert call("--man", script=tmp_path / "bin/rb").returncode == 0


def test_checkout_without_rbuilds_says_what_to_do(environment, tmp_path) -> None:
    copy = tmp_path / "checkout/rbuilds/rbuilds.sh"
    copy.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, copy)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "dirname", "readlink"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    bare = subprocess.run([copy, "-h"], env={"PATH": str(tools)}, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert bare.returncode == 2 and "dev setup" in bare.stderr
    # with one on PATH, that one
    assert subprocess.run([copy, "-h"], env=environment, capture_output=True, timeout=TIMEOUT_S).returncode == 0


def test_python_files_in_the_current_directory_are_not_imported(call, tmp_path) -> None:
    (tmp_path / "my apps/json.py").write_text("raise SystemExit('imported')\n")
    assert call("--json", "--cmd", WORKS).returncode == 0


@pytest.mark.parametrize("words", [["-h"], ["-?"], ["-hh"], ["-hhh"], ["--man"], ["--info"]])
def test_help_is_no_failure(call, words) -> None:
    done = call(*words)
    assert done.returncode == 0 and "make_eif" in done.stdout and done.stderr == ""


def test_step_that_leaves_a_daemon_does_not_keep_us(call) -> None:
    done = call("--lsh", "--json", "--cmd", "sleep 1000 & echo $! >pid", "--cmd", "kill $(cat pid)")
    assert done.returncode == 0


def test_terminal_flag_without_a_terminal_keeps_everything_in_the_log(call) -> None:
    plain, with_tty = call("--cmd", WORKS), call("--tty", "--cmd", WORKS)
    assert with_tty.returncode == 0
    assert with_tty.stdout == plain.stdout != ""


def test_sigterm_ends_the_step_as_well(environment, tmp_path) -> None:
    with subprocess.Popen(
        [SCRIPT, "--lsh", "--cmd", "echo $$ >pid; echo ready; exec sleep 1000"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


class Prompt:
    """rbuilds.sh on a terminal of its own."""

    def __init__(self, environment: dict[str, str], directory: Path, *words: str) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(directory)
            os.execve(SCRIPT, [str(SCRIPT), *words], environment)
        self.text = b""

    def wait_for(self, text: bytes) -> None:
        while text not in self.text:
            assert select.select([self.terminal], [], [], TIMEOUT_S)[0], self.text
            chunk = os.read(self.terminal, 4096)
            self.text += chunk
        self.text = self.text.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def end(self) -> int:
        while True:
            try:
                if not os.read(self.terminal, 4096):
                    break
            except OSError:  # how Linux says that the other end is closed
                break
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


PROMPT = b"$)> "


def test_prompt_goes_on_after_a_failure_and_keeps_history(environment, tmp_path) -> None:
    prompt = Prompt(environment, tmp_path)
    prompt.wait_for(PROMPT)
    prompt.type("no_such_thing\n")
    prompt.wait_for(b"no such command")
    prompt.wait_for(PROMPT)
    prompt.type("--dry-run\n")
    prompt.wait_for(PROMPT)
    prompt.type("list_encl\t\n")
    prompt.wait_for(b"rbuilds list")
    prompt.wait_for(PROMPT)
    prompt.type("make eif --env KEY=s3cr3t\n")
    prompt.wait_for(PROMPT)
    prompt.type("drop_enclaves_all\n")
    prompt.wait_for(b"rbuilds drop --all")
    prompt.wait_for(PROMPT)
    prompt.type("\x04")
    assert prompt.end() == 0
    history = (tmp_path / "state/enclavekit/rbuilds_history").read_text().splitlines()
    # readline puts a space after a completed word, libedit does not
    assert [line.rstrip() for line in history] == ["no_such_thing", "--dry-run", "list_enclaves", "drop_enclaves_all"]


def test_prompt_ends_with_the_code_of_its_last_line(environment, tmp_path) -> None:
    prompt = Prompt(environment, tmp_path)
    prompt.wait_for(PROMPT)
    prompt.type("no_such_thing\n")
    prompt.wait_for(PROMPT)
    prompt.type("exit\n")
    assert prompt.end() == 2


def test_sigterm_ends_the_prompt(environment, tmp_path) -> None:
    prompt = Prompt(environment, tmp_path)
    prompt.wait_for(PROMPT)
    # again until it ends: Python's readline does not hear of a signal that comes just before it begins to wait for keys
    while not select.select([prompt.terminal], [], [], 0.2)[0]:
        os.kill(prompt.pid, signal.SIGTERM)
    assert prompt.end() == 130


def test_question_on_a_terminal(environment, tmp_path) -> None:
    prompt = Prompt(environment, tmp_path, "-q", "--cmd", "drop_enclaves_all")
    prompt.wait_for(b"[y/n]?")
    prompt.type("n\n")
    assert prompt.end() == 0


def test_terminal_flag_shows_on_the_terminal_what_goes_into_a_pipe(environment, tmp_path) -> None:
    code = "exec \"$1\" --tty --cmd 'explain E26' >log 2>&1"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve("/bin/sh", ["sh", "-c", code, "sh", str(SCRIPT)], environment)
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    log = (tmp_path / "log").read_bytes()
    assert log and shown.replace(b"\r\n", b"\n") == log


@pytest.mark.parametrize(
    ("line", "text", "wanted"),
    [
        ("", "list_e", ["list_enclaves"]),
        ("", "run_eif_image_debugmode_", ["run_eif_image_debugmode_cli"]),
        ("", "--rev_n", ["--rev_net", "--rev_network"]),
        ("make_eif ", "--khos", ["--khost"]),
        ("make ", "ini", ["init"]),
        ("make_eif ", "we", ["web.dockerfile"]),
        ("make_eif ", "ro", ["root/"]),
        ("", "zzz", []),
    ],
)
def test_completion(line, text, wanted, tmp_path, monkeypatch) -> None:
    from enclavekit_rbuilds.console.catalog import known_names

    monkeypatch.chdir(tmp_path)
    (tmp_path / "web.dockerfile").touch()
    (tmp_path / "root").mkdir()
    assert candidates(line, text, known_names()) == wanted
