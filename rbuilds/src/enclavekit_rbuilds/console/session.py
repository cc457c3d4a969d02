# SPDX-License-Identifier: Apache-2.0
"""Runs lines of the console one after the other: understand, ask, run, remember. The first failure ends a line."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace

from enclavekit_core.errors import EnclavekitError, InputError

from enclavekit_rbuilds.console import catalog
from enclavekit_rbuilds.console.flags import parse_flags
from enclavekit_rbuilds.console.lines import Lines
from enclavekit_rbuilds.console.masking import mask_line, mask_words
from enclavekit_rbuilds.console.output import Output
from enclavekit_rbuilds.console.plan import IMAGE_SUFFIX, Context, Step, Surroundings
from enclavekit_rbuilds.console.planners import KERNEL_FILES
from enclavekit_rbuilds.console.process import Outcome, real_argv, run_process
from enclavekit_rbuilds.console.records import remove_files, remove_records, write_records
from enclavekit_rbuilds.console.report import Result, Status, make_result
from enclavekit_rbuilds.console.settings import Settings
from enclavekit_rbuilds.console.texts import TEXTS

YES, NO = ("y", "yes"), ("n", "no")
INTERRUPTED = 130
SHELL_WARNING = "warning: a local shell line, run on this host with your rights, in no enclave"
Runner = Callable[..., Outcome]


class StepFailed(EnclavekitError):
    """A step that ended with an error; its exit code is ours."""

    def __init__(self, command: str, step: Step, status: int) -> None:
        self.exit_code = status
        self.step = step.name
        shown = shlex.join(mask_words(step.argv))
        super().__init__(f"cannot finish {command}: step {step.name} ended with exit code {status} ({shown})")


class Session:
    """Settings, what is remembered from line to line, and the results so far."""

    def __init__(
        self,
        settings: Settings,
        around: Surroundings,
        lines: Lines,
        output: Output,
        *,
        subcommands: Collection[str] = (),
        runner: Runner = run_process,
        interactive: bool = False,
    ) -> None:
        self.settings = settings
        self.around = around
        self.lines = lines
        self.output = output
        self.subcommands = subcommands
        self.runner = runner
        self.interactive = interactive
        self.allows_shell = settings.local_shell  # --lsh was given: the word lsh may switch it off and on
        self.results: list[Result] = []
        self.ended = False
        self._image: str | None = None
        self._made_kernel = False

    def run_line(self, line: str) -> None:
        """Run one line. Raises EnclavekitError at the first thing that fails."""
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            return
        self.output.use_terminal(self.settings.tty)
        words = self._words_of(stripped)
        if words is None:
            self._run_shell(stripped)
        elif words and words[0].startswith("-"):
            self._apply_flags(words)
        elif words:
            self._dispatch(words)

    def _words_of(self, line: str) -> list[str] | None:
        """Return the words of a line, None if it is one for the local shell."""
        try:
            words = catalog.split_line(line)
        except InputError:
            if self.settings.local_shell and line.split()[0] != "make":
                return None
            raise
        known = {*catalog.known_names(self.subcommands), *YES, *NO}
        if self.settings.local_shell and words and words[0] not in known and not words[0].startswith("-"):
            return None
        return words

    def _apply_flags(self, words: list[str]) -> None:
        settings = parse_flags(words, replace(self.settings, commands=(), text=None))
        if settings.text is not None:
            self.output.print(TEXTS[settings.text]())
            return
        if settings.local_shell and not self.allows_shell:
            raise InputError("switch on", "the local shell", "--lsh must be given when rbuilds.sh is called")
        if settings.json and not self.settings.json:
            raise InputError("switch on", "JSON", "--json must be given when rbuilds.sh is called")
        self.settings = replace(settings, commands=())
        self.trace_settings()
        for command in settings.commands:
            self.run_line(command)

    def _dispatch(self, words: list[str]) -> None:
        name = words[0]
        self._trace(f"line: {shlex.join(mask_words(words))}")
        if name in YES + NO:
            self._take_stray_answer(name)
        elif name in catalog.ENDS:
            self.ended = True
        elif name in catalog.TEXT_NAMES:
            self.output.print(TEXTS[name]())
        elif name in catalog.TOGGLES:
            self._toggle(words)
        elif name == catalog.CHOICE:
            self._choose(words[1:])
        else:
            self._run_command(words)

    def _take_stray_answer(self, word: str) -> None:
        # scripts for the Rust framework answer more questions than there are steps here; a refusal must not be lost
        if word in NO and not self.settings.dry_run:
            raise InputError("take answer", word, "no question was asked, so what came before it has run")
        self.output.say(f"note: answer {word} ignored: no question was asked")

    def _toggle(self, words: list[str]) -> None:
        name, settings = words[0], self.settings
        if len(words) > 1:
            raise InputError("switch", name, f"it takes no argument, but {words[1]} is there")
        match name:
            case "network" | "forward_network" | "reverse_network":
                direction = "both" if name == "network" else name.removesuffix("_network")
                settings = settings.toggle_network(direction)
                state: str = settings.network or "what the manifest lists"
            case "lsh" if not self.allows_shell:
                raise InputError("switch on", "the local shell", "--lsh must be given when rbuilds.sh is called")
            case _:
                settings, is_on = settings.switch({"q": "question", "lsh": "local_shell"}.get(name, name))
                state = "on" if is_on else "off"
        self.settings = settings
        self.output.say(f"{name}: {state}")

    def _choose(self, words: list[str]) -> None:
        """make_enclave: ask which of the run and manage commands to run, and run that one."""
        if not words:
            offered = "\n".join(f"  {number} {name}" for number, name in enumerate(catalog.CHOICES, 1))
            answer = self.lines.answer(f"{offered}\nwhich (number or name, n for none)?")
            if answer.lower() in NO:
                return
            if answer.isascii() and answer.isdigit() and 0 < int(answer) <= len(catalog.CHOICES):
                answer = catalog.CHOICES[int(answer) - 1]
            words = [answer]
        if words[0] not in (*catalog.CHOICES, "drop_enclaves_all"):
            raise InputError("run", f"{catalog.CHOICE} {words[0]}", f"it is not one of {', '.join(catalog.CHOICES)}")
        self._run_command(words)

    def _run_command(self, words: list[str]) -> None:
        made = self._made_kernel or self.around.is_file(KERNEL_FILES[0])
        base = Context(words[0], self.settings, self.around, image=self._image, made_kernel=made)
        steps = catalog.plan_command(catalog.context_of(words, base), self.subcommands)
        if any(step.output for step in steps) and not self.settings.dry_run:
            self.output.open_log()
        skipped = False
        for step in steps:
            if not step.argv:
                self.output.say(f"{words[0]}: {step.note}")
                self._record(words[0], step, "noted")
                continue
            skipped = skipped if step.belongs else self._is_refused(words[0], step)
            if skipped:
                self._record(words[0], step, "skipped")
            else:
                self._run_step(words[0], step)
                self._remember(step)

    def _remember(self, step: Step) -> None:
        if step.output.endswith(IMAGE_SUFFIX):
            self._image = step.output
        elif step.output == KERNEL_FILES[0]:
            self._made_kernel = True
        elif step.removes:
            self._image = None if self._image in step.removes else self._image
            self._made_kernel = self._made_kernel and KERNEL_FILES[0] not in step.removes

    def _is_refused(self, command: str, step: Step) -> bool:
        """Ask whether to run a step if that was asked for. Raises InputError without a clear answer."""
        if not self.settings.question or self.settings.dry_run:
            return False
        answer = self.lines.answer(f"{command}: {shlex.join(mask_words(step.argv))} [y/n]?").lower()
        if answer not in YES + NO:
            raise InputError("take answer", shlex.quote(answer), f"for step {step.name} it is neither y nor n")
        return answer in NO

    def _run_step(self, command: str, step: Step, *, stdin: int = subprocess.DEVNULL) -> None:
        """Run a step and record how it went. Raises StepFailed, or what kept it from running."""
        shown = shlex.join(mask_words(step.argv))
        if self.settings.dry_run:
            if not self.output.as_json:
                self.output.print(shown)
            self._record(command, step, "planned")
            return
        if step.note:
            self.output.say(f"note: {command}: {step.note}")
        self.output.say(f"{command}: {shown}")
        self.output.log(f"start {command} {step.name}")
        started = time.monotonic()
        status, error = INTERRUPTED, "interrupted"
        try:
            outcome = self._perform(step, stdin)
            status, error = outcome.status, outcome.last_line
        except EnclavekitError as exc:
            status, error = exc.exit_code, str(exc)
            raise
        finally:
            how: Status = "failed" if status else "done"
            self._record(command, step, how, status, time.monotonic() - started, error if status else "")
        if status:
            raise StepFailed(command, step, status)

    def _perform(self, step: Step, stdin: int) -> Outcome:
        argv = real_argv(step.argv)
        self._trace(f"run: {shlex.join(mask_words(argv))}")
        if not step.records:
            outcome = self.runner(argv, self.output.result, self.output.error, stdin=stdin)
            if outcome.status == 0:
                remove_files(step.removes)
            return outcome
        remove_records(step.records)  # those of an older image must not stay beside this one
        collected = bytearray()
        outcome = self.runner(argv, collected.extend, self.output.error, stdin=stdin)
        if outcome.status == 0:
            write_records(step.records, bytes(collected))
        return outcome

    def _run_shell(self, line: str) -> None:
        """Run a line that is no command with sh."""
        step = Step("local shell", ("sh", "-c", line))
        if not self.settings.dry_run:
            self.output.say(f"{SHELL_WARNING}: {mask_line(line)}")
        if self._is_refused("lsh", step):
            self._record("lsh", step, "skipped")
            return
        self._run_step("lsh", step, stdin=0 if self.interactive else subprocess.DEVNULL)

    def _record(
        self,
        command: str,
        step: Step,
        status: Status,
        exit_code: int | None = None,
        seconds: float = 0.0,
        error: str = "",
    ) -> None:
        self.results.append(make_result(command, step, status, exit_code=exit_code, seconds=seconds, error=error))
        self.output.log(f"{status} {command} {step.name} after {seconds:.1f} s")
        if status == "skipped":
            self.output.say(f"{command}: step {step.name} skipped")

    def trace_settings(self) -> None:
        self._trace(f"settings: {describe_settings(self.settings)}")

    def _trace(self, text: str) -> None:
        if self.settings.debug:
            self.output.say(f"trace: {text}")


def describe_settings(settings: Settings) -> str:
    """Return what differs from the defaults."""
    values, defaults = asdict(settings), asdict(Settings())
    changed = [f"{name}={value}" for name, value in values.items() if value != defaults[name] and name != "commands"]
    return ", ".join(changed) or "defaults"


def run_lines(session: Session, lines: Sequence[str]) -> None:
    """Run lines up to the first that fails, or that ends the session. Raises EnclavekitError."""
    for line in lines:
        session.run_line(line)
        if session.ended:
            return
