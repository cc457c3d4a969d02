# SPDX-License-Identifier: Apache-2.0
"""The prompt: lines with history and completion, on a terminal."""

from __future__ import annotations

import getpass
import glob
import os
import readline
import socket
import sys

from enclavekit_core.errors import EnclavekitError

from enclavekit_rbuilds.console.catalog import known_names
from enclavekit_rbuilds.console.flags import FLAGS
from enclavekit_rbuilds.console.lines import TerminalAnswers
from enclavekit_rbuilds.console.masking import mask_line
from enclavekit_rbuilds.console.process import Terminated
from enclavekit_rbuilds.console.session import Session

MAX_HISTORY_LINES = 1000
INTERRUPTED = 130


def history_path() -> str:
    """Return `$XDG_STATE_HOME/enclavekit/rbuilds_history`, with its default."""
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "enclavekit", "rbuilds_history")


def candidates(line: str, text: str, names: list[str]) -> list[str]:
    """Return what may stand where `text` is, the word under the cursor; `line` is what precedes it.

    Commands and flags first on a line, flags and files after. Pure but for the files.
    """
    flags = [alias for flag in FLAGS for alias in flag.aliases]
    if text.startswith("-"):
        return sorted(flag for flag in flags if flag.startswith(text))
    head = line.lstrip()
    if not head:
        return sorted({name.partition(" ")[0] for name in names if name.startswith(text)})
    if head.split() == ["make"]:
        spaced = [name.partition(" ")[2] for name in names if name.startswith("make ")]
        return sorted(word for word in spaced if word.startswith(text))
    found = glob.glob(glob.escape(os.path.expanduser(text)) + "*")
    return sorted(path + "/" if os.path.isdir(path) else path for path in found)


class Terminal(TerminalAnswers):
    """Command lines with readline's editing; answers are kept out of the history."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.path = history_path()
        self._found: list[str] = []

    def open(self) -> None:
        readline.set_auto_history(False)
        readline.set_history_length(MAX_HISTORY_LINES)
        readline.set_completer_delims(" \t\n=")
        readline.set_completer(self._complete)
        readline.parse_and_bind("tab: complete")
        try:
            readline.read_history_file(self.path)
        except OSError:
            pass  # the first time, or a file that is not ours to read: no history then

    def close(self) -> None:
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            readline.write_history_file(self.path)
            os.chmod(self.path, 0o600)
        except OSError as exc:
            print(f"rbuilds: note: history is not kept: {exc}", file=sys.stderr)

    def next_line(self) -> str | None:
        prompt = f"{_user_name()}@{socket.gethostname()}:{os.getcwd()} $)> "
        try:
            line = input(prompt)
        except EOFError:
            print()
            return None
        if line.strip() and mask_line(line) == line:  # what holds a secret is not kept
            readline.add_history(line)
        return line

    def _complete(self, text: str, state: int) -> str | None:
        if state == 0:
            self._found = candidates(readline.get_line_buffer()[: readline.get_begidx()], text, self.names)
        return self._found[state] if state < len(self._found) else None


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def run_repl(session: Session, terminal: Terminal) -> int:
    """Run lines until exit or the end of input; a line that fails is reported, and the prompt comes back.

    Returns: the exit code of the last line, as a shell does.
    """
    status = 0
    terminal.open()
    try:
        while not session.ended:
            try:
                line = terminal.next_line()
                if line is None:
                    break
                session.run_line(line)
                status = 0 if line.strip() and not session.ended else status
            except EnclavekitError as exc:
                session.output.say(str(exc))
                status = exc.exit_code
            except Terminated:
                raise
            except KeyboardInterrupt:
                print(file=sys.stderr)
                status = INTERRUPTED
    finally:
        terminal.close()
    return status


def open_terminal(subcommands: list[str]) -> Terminal:
    return Terminal(known_names(subcommands))
