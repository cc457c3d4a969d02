# SPDX-License-Identifier: Apache-2.0
"""What a failed nitro-cli command means: the true error among those printed, one cause, one cure. Pure.

nitro-cli prints `[ Enn ] text` per error; a run-enclave that failed inside its enclave process ends with E39 (or E38)
whatever happened, and the true error is the first one. It names a log file with the path of the failure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from enclavekit_core.nitro_errors import NITRO_ERRORS, format_error_code

CODE = re.compile(r"^\[ E(\d+) \] ?(.*)$", re.MULTILINE)
CONSOLE = re.compile(r"^  console: (.*)$", re.MULTILINE)
LOG_PATH = re.compile(r'error log found at "([^"\n]+)"')
SUBACTIONS = re.compile(r"^[ \t]*Subactions:[ \t]*\n((?:(?![ \t]*Root error)[ \t]+\S.*\n?)+)", re.MULTILINE)
IN_USE = re.compile(r"address already in use|EADDRINUSE|os error 98", re.IGNORECASE)

# failures of the way to the enclave process, or of the heartbeat port while another launch holds it: the same
# command succeeds a moment later
TRANSIENT = frozenset({8, 11, 15, 38, 39, 41})
MAX_ATTEMPTS = 3
RETRY_PAUSES_S = (1.0, 3.0)  # after the first and the second failure
MAX_TEXT_CHARS = 300  # of nitro-cli's own words in our line


@dataclass(frozen=True, slots=True)
class NitroFailure:
    number: int | None
    """The first error printed; None if none was."""
    text: str
    """nitro-cli's own words for it, one line."""
    log_path: str | None = None
    details: tuple[str, ...] = ()
    """From the log: what was tried, the innermost first."""
    console: tuple[str, ...] = ()
    """The last lines of an enclave that did not boot, as nitro-emu prints them."""
    names_cause: bool = False
    """nitro-emu's words are the cause already; the usual suspects of a Nitro host would only mislead."""

    @property
    def code(self) -> str:
        return "" if self.number is None else format_error_code(self.number)

    @property
    def is_transient(self) -> bool:
        """Say whether the same command may succeed a moment later."""
        if any(IN_USE.search(text) for text in (self.text, *self.details)):
            return self.number in TRANSIENT or self.number in (36, 37)
        return self.number in TRANSIENT

    def describe(self) -> str:
        """Return one line: the number, nitro-cli's words, the cause and the cure."""
        if self.number is None:
            return self.text
        if self.names_cause:
            return f"{self.code}: {self.text}; more: rbuilds explain {self.code}"
        known = NITRO_ERRORS.get(self.number)
        words = self.text
        if self.details and self.details[0] not in words:
            words += f" ({self.details[0]})"
        if known is None:
            return f"{self.code}: {words}"
        if not words.startswith(known.title):
            words = f"{known.title}: {words}" if words else known.title
        return f"{self.code}: {words.rstrip('.')}; cause: {known.cause}; cure: {known.cure}"


def parse_failure(stderr: str, status: int) -> NitroFailure:
    """Parse what a failed command wrote to standard error."""
    found = [(int(number), text.strip()) for number, text in CODE.findall(stderr)]
    console = tuple(_printable(line) for line in CONSOLE.findall(stderr))
    named = LOG_PATH.search(stderr)
    log_path = named[1] if named else None
    if not found:
        last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "it said nothing")
        return NitroFailure(None, f"exit {status}: {_printable(last)}", log_path)
    number, text = found[0]
    if not text:  # the words are on the next line
        lines = stderr.splitlines()
        at = next(index for index, line in enumerate(lines) if line.startswith(f"[ E{number:02} ]"))
        text = lines[at + 1].strip() if at + 1 < len(lines) else ""
    return NitroFailure(number, _printable(text), log_path, console=console)


def parse_error_log(text: str) -> tuple[str, ...]:
    """Return the `Subactions` of nitro-cli's error log, the innermost first; empty if there are none."""
    found = SUBACTIONS.search(text)
    return tuple(_printable(line.strip()) for line in found[1].splitlines() if line.strip()) if found else ()


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:MAX_TEXT_CHARS]
