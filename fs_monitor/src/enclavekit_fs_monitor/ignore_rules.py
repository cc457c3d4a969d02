# SPDX-License-Identifier: Apache-2.0
"""What is not hashed: gitignore syntax below the root, and the Rust fs-monitor's globs on absolute paths. Pure.

The last pattern that matches decides, as in git, and what lies in an ignored directory cannot be brought back. Read by
pathspec. A pattern that begins with the root's own path is a glob on the absolute path, as the Rust fs-monitor reads
it: `*` and `?` cross slashes there.
"""

from __future__ import annotations

import re

from enclavekit_core.errors import ConfigError
from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

MAX_FILE_BYTES = 256 * 1024  # some ten thousand patterns, each of which is tried on each file
# the bus's own store and logs: a hash that is stored would change a file that has to be hashed
BUILT_IN = ("nats.db/", ".logs/", "**/jetstream/*/streams/")
_GLOB = re.compile(r"\*\*/|\*+|\?|\[!?\]?[^]]*\]|.", re.DOTALL)


class IgnoreRules:
    """The patterns for one root."""

    def __init__(self, spec: GitIgnoreSpec, count: int) -> None:
        self._spec = spec
        self.count = count
        """Patterns, without the built-in ones."""

    def matches(self, relative: bytes, *, is_directory: bool) -> bool:
        """Return whether a pattern names this path below the root; of its parents, see `covers`."""
        text = relative.decode("utf-8", "surrogateescape")
        return self._spec.match_file(f"{text}/" if is_directory else text)

    def covers(self, relative: bytes, *, is_directory: bool) -> bool:
        """Return whether this path or a directory on the way to it is ignored."""
        parts = relative.split(b"/")
        parents = (b"/".join(parts[:count]) for count in range(1, len(parts)))
        return any(self.matches(parent, is_directory=True) for parent in parents) or self.matches(
            relative, is_directory=is_directory
        )


def parse_rules(text: bytes, root: bytes, source: str) -> IgnoreRules:
    """Read an ignore file for the tree at `root`. Raises ConfigError that names `source` and the line."""
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(source, "", f"it is larger than {MAX_FILE_BYTES} bytes")
    own = root.decode("utf-8", "surrogateescape")
    patterns = [GitIgnoreSpecPattern(line) for line in BUILT_IN]
    for number, line in enumerate(text.decode("utf-8", "surrogateescape").split("\n"), 1):
        line = line.removesuffix("\r")
        try:
            patterns.append(_parse_line(line, own))
        except (ValueError, re.error) as exc:
            raise ConfigError(source, f"line {number}", f"{line[:100]!r} is no pattern") from exc
    count = sum(pattern.include is not None for pattern in patterns) - len(BUILT_IN)
    return IgnoreRules(GitIgnoreSpec([pattern for pattern in patterns if pattern.include is not None]), count)


def _parse_line(line: str, root: str) -> GitIgnoreSpecPattern:
    glob = line.removeprefix("!").rstrip(" ")
    if root == "/" or not glob.startswith(f"{root}/"):
        return GitIgnoreSpecPattern(line)
    regex = "".join(_translate(found[0]) for found in _GLOB.finditer(glob[len(root) + 1 :]))
    return GitIgnoreSpecPattern(re.compile(f"\\A(?s:{regex})(?:/.*)?\\Z"), include=not line.startswith("!"))


def _translate(part: str) -> str:
    match part[0]:
        case "*":
            return "(?:.*/)?" if part == "**/" else ".*"
        case "?":
            return "."
        case "[" if len(part) > 1:
            inner = part[1:-1].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
            return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        case _:
            return re.escape(part)
