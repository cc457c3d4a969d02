# SPDX-License-Identifier: Apache-2.0
"""Copy a tree so that everything about it differs which must not count: order, inode numbers, times, owners.

What counts is kept: names, modes, contents, link targets, device numbers, and which names are one file.
"""

from __future__ import annotations

import os
import shutil
import stat

from enclavekit_core.errors import InputError, describe_cause


def copy_reordered(source: str, target: str, *, owner: int | None = None) -> None:
    """Copy the directory `source` to `target`, which must not exist, in the reverse order of its names.

    Args: owner: who gets the copy, if we may give it away; files that only their owner may read stay readable then.
    Raises: InputError.
    """
    linked: dict[tuple[int, int], bytes] = {}
    raw_source, raw_target = os.fsencode(source), os.fsencode(target)
    try:
        os.mkdir(raw_target)
        _fill(raw_source, raw_target, linked, owner)
        _finish(raw_target, os.lstat(raw_source).st_mode, owner)
    except OSError as exc:
        where = os.fsdecode(exc.filename) if exc.filename else source
        raise InputError("copy", where, describe_cause(exc)) from exc


def _fill(source: bytes, target: bytes, linked: dict[tuple[int, int], bytes], owner: int | None) -> None:
    with os.scandir(source) as listing:
        entries = sorted(listing, key=lambda entry: entry.name, reverse=True)
    for entry in entries:
        info = entry.stat(follow_symlinks=False)
        place = os.path.join(target, entry.name)
        first = linked.get((info.st_dev, info.st_ino)) if info.st_nlink > 1 else None
        if stat.S_ISDIR(info.st_mode):
            os.mkdir(place)
            _fill(entry.path, place, linked, owner)
        elif first is not None:
            os.link(first, place, follow_symlinks=False)
            continue
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(entry.path), place)
        elif stat.S_ISREG(info.st_mode):
            shutil.copyfile(entry.path, place)
        else:
            os.mknod(place, info.st_mode, info.st_rdev)
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            linked[(info.st_dev, info.st_ino)] = place
        _finish(place, info.st_mode, owner)


def _finish(place: bytes, mode: int, owner: int | None) -> None:
    if owner is not None:
        os.chown(place, owner, owner, follow_symlinks=False)
    if not stat.S_ISLNK(mode):
        os.chmod(place, stat.S_IMODE(mode))  # last: the umask and a change of owner take bits away
