# SPDX-License-Identifier: Apache-2.0
"""Content-addressed cache of build results: each is made once, under a lock, and appears whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from enclavekit_core.errors import InputError, describe_cause

KEY_HEX_DIGITS = 24  # 96 bits: nobody can search for a second input with the same key in a cache of one's own


def cache_root() -> str:
    """Return `$XDG_CACHE_HOME/enclavekit` or `~/.cache/enclavekit`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "enclavekit")


def key_of(parts: Iterable[str | bytes]) -> str:
    """Return the key of an input: the hash over its parts, each with its length so that they cannot run together."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:KEY_HEX_DIGITS]


def cached(name: str, key: str, make: Callable[[str], None], *, root: str | None = None) -> str:
    """Return the directory `<root>/<name>-<key>`, made by `make(directory)` if it is not there.

    `make` fills an empty directory, which is then renamed into place: whoever is killed half-way leaves only a
    `.tmp-*` directory, removed by the next build that holds the lock. Two builds at once wait for each other.
    """
    base = root or cache_root()
    final = os.path.join(base, f"{name}-{key}")
    if os.path.isdir(final):
        return final
    try:
        os.makedirs(base, mode=0o755, exist_ok=True)
        with _locked(os.path.join(base, f"{name}-{key}.lock")):
            if os.path.isdir(final):  # made while we waited
                return final
            prefix = f".tmp-{name}-{key}-"
            for stale in os.listdir(base):
                if stale.startswith(prefix):
                    shutil.rmtree(os.path.join(base, stale), ignore_errors=True)
            work = tempfile.mkdtemp(prefix=prefix, dir=base)
            try:
                make(work)
                os.chmod(work, 0o755)  # noqa: S103 - holds public packages; mkdtemp made it 0700
                os.rename(work, final)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
    except OSError as exc:
        raise InputError("use cache directory", base, describe_cause(exc)) from exc
    return final


@contextmanager
def _locked(path: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
