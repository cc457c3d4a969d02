# SPDX-License-Identifier: Apache-2.0
"""Read the ```console fences of a Markdown page: commands after `$ `, then what they print."""

from __future__ import annotations

import doctest
import re
from dataclasses import dataclass

FENCE = re.compile(r"^```console([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTPUT = doctest.OutputChecker()
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE  # `...` stands for anything


@dataclass(frozen=True)
class Step:
    """One command of a page. `expected` is the output shown under it, empty where the page shows none."""

    command: str
    expected: str
    exit_code: int

    def accepts(self, output: str) -> bool:
        return not self.expected or OUTPUT.check_output(self.expected, output, FLAGS)


def read_steps(markdown: str) -> list[Step]:
    """Return the steps of all fences in order.

    A trailing `\\` or a following `> ` continues a command; a line `(exit N)` at the end of its output says which exit
    code it ends with.
    """
    steps: list[Step] = []
    for _info, body in FENCE.findall(markdown):
        for chunk in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            lines = chunk.split("\n")
            count = 1
            # a here-document shows the shell's `> ` before each of its lines
            while lines[count - 1].endswith("\\") or lines[count].startswith("> "):
                lines[count] = lines[count].removeprefix("> ")
                count += 1
            output = lines[count:]
            while output and not output[-1].strip():
                output.pop()
            code = 0
            if output and (ended := re.fullmatch(r"\(exit (\d+)\)", output[-1])):
                code = int(ended[1])
                output.pop()
            steps.append(Step("\n".join(lines[:count]), "".join(line + "\n" for line in output), code))
    return steps
