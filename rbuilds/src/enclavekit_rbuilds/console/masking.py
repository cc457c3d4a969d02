# SPDX-License-Identifier: Apache-2.0
"""Command lines as they may be shown and kept: values that look like secrets are replaced. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

MASK = "***"
SECRET = r"(?:token|secret|passw|passphrase|api[_-]?key|access[_-]?key|private[_-]?key|credential|authorization)"  # noqa: S105
NAMED = re.compile(rf"(?i)([\w-]*{SECRET}[\w-]*\s*[=:]\s*)(?:(?:bearer|basic)\s+)?[^\s'\"]+")
FLAG = re.compile(rf"(?i)--?[\w-]*{SECRET}[\w-]*")
BEARER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[^\s'\"]+")
SPACED = re.compile(rf"(?i)((?:^|\s)--?[\w-]*{SECRET}[\w-]*\s+)[^\s-][^\s]*")
ENVIRONMENT = re.compile(r"((?:^|\s)(?:-e\s+|--env[\s=]\s*)['\"]?\w+=)\S+")
LOGIN = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")
ENVIRONMENT_FLAGS = ("--env", "-e")  # of rbuilds build: any value may be a secret, whatever it is called


def mask_words(words: Sequence[str]) -> list[str]:
    """Return `words` with secret values replaced; the number of words stays."""
    masked: list[str] = []
    previous = ""
    for word in words:
        name, equals, _value = word.partition("=")
        if previous in ENVIRONMENT_FLAGS:
            masked.append(f"{name}={MASK}" if equals else MASK)
        elif name == "--env" and equals:
            masked.append(f"--env={_value.partition('=')[0]}={MASK}")
        elif FLAG.fullmatch(previous):
            masked.append(MASK)
        else:
            masked.append(mask_text(word))
        previous = word
    return masked


def mask_text(text: str) -> str:
    """Return a shell line or a word with secret values replaced."""
    for pattern in (NAMED, BEARER, SPACED, ENVIRONMENT):
        text = pattern.sub(rf"\g<1>{MASK}", text)
    return LOGIN.sub(rf"\g<1>{MASK}@", text)


def mask_line(line: str) -> str:
    """Return a line as it was typed with secret values replaced; one that is no words is masked whole."""
    try:
        words = shlex.split(line)
    except ValueError:
        return MASK
    masked = mask_words(words)
    return mask_text(line) if masked == words else shlex.join(masked)
