# SPDX-License-Identifier: Apache-2.0
"""What the second build of a reproduction finds: another copy of the sources, directories and a user of its own.

<scratch>/second/            belongs to the second build's user
    work/  home/  cache/  tmp/  source/  shuffled/
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.base.cache import ENTRY, cache_root
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.evidence import probe
from enclavekit_rbuilds.evidence.reorder import copy_reordered
from enclavekit_rbuilds.evidence.surroundings import (
    OTHER_UID,
    Host,
    OrderChange,
    Places,
    Surroundings,
    UserChange,
    plan_surroundings,
)

# cache entries that hold what is the same for every app: kernel and framework
MADE_KERNELS = re.compile(r"kernel-made")
SHARED_ENTRIES = re.compile(r"base|ramdisk|(kernel|framework)(-[a-z0-9-]+)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Where the app comes from, as the build request has it; exactly one of the first three is set."""

    dockerfile: str | None
    archive: str | None
    rootfs: str | None
    context: str | None
    engine: str = ""
    made_kernel: bool = False
    """The kernel is one that `rbuilds kernel make` put into the cache; no build makes it."""
    others: tuple[str, ...] = ()
    """Further files that the build reads."""


def prepare_second(
    source: Source, scratch: str, progress: Progress, *, reuse_framework: bool
) -> tuple[Surroundings, list[str]]:
    """Make the second build's directories and sources; return its surroundings and the words that name the sources."""
    second = os.path.join(scratch, "second")
    places = Places(*(os.path.join(second, name) for name in ("work", "home", "cache", "tmp")))
    for directory in (second, places.work, places.home, places.cache, places.temporary):
        os.mkdir(directory, 0o755)
    with_engine = source.dockerfile is not None
    shared = SHARED_ENTRIES if reuse_framework else MADE_KERNELS if source.made_kernel else None
    if shared is MADE_KERNELS:
        progress.note("the kernel was not made again: `rbuilds kernel make` does that")
    user: UserChange | None = None
    obstacle = ""
    if not with_engine:
        inputs = [path for path in (source.archive, source.rootfs, *source.others) if path is not None]
        if shared is not None and os.path.isdir(cache_root()):
            inputs.append(cache_root())
        user, obstacle = probe.find_user_change(second, [os.path.abspath(path) for path in inputs])
    owner = OTHER_UID if user == "account" else None
    with progress.step("another copy of the sources"):
        if shared is not None:
            share_entries(shared, places.cache)
        words, order, order_obstacle = _second_source(source, second, owner)
    if owner is not None:
        for directory in (places.work, places.home, places.cache, places.temporary):
            os.chown(directory, owner, owner)
    host = Host(
        umask=probe.current_umask(),
        locale=probe.current_locale(),
        locales=probe.installed_locales(),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        faketime=probe.find_faketime(),
        user=user,
        user_obstacle=obstacle,
        order=order,
        order_obstacle=order_obstacle,
    )
    plan = plan_surroundings(host, places, os.environ, with_engine=with_engine, uid=os.geteuid())
    return plan, words


def _second_source(source: Source, second: str, owner: int | None) -> tuple[list[str], OrderChange | None, str]:
    """Copy the app's source; return the words that name the copy, how its order differs, and why it does not."""
    if source.archive is not None:
        # its members have an order of their own, which is content; only the place changes
        link = os.path.join(second, os.path.basename(source.archive))
        os.symlink(os.path.abspath(source.archive), link)
        return [f"--archive={link}"], None, "an archive has no directories to shuffle"
    original = source.rootfs
    if source.dockerfile is not None:
        original = source.context or os.path.dirname(os.path.abspath(source.dockerfile))
    if original is None:
        raise InputError("reproduce", "a build", "no source was given")
    # a directory's own name is told in the evidence
    name = os.path.basename(os.path.abspath(original)) or "root"
    copy, shuffled = (os.path.join(second, above, name) for above in ("source", "shuffled"))
    for above in ("source", "shuffled"):
        os.mkdir(os.path.join(second, above), 0o755)
    copy_reordered(original, copy, owner=owner)
    os.mkdir(shuffled, 0o755)
    order: OrderChange = "copy"
    if not probe.mount_disordered(copy, shuffled, for_others=owner is not None):
        copy, order = shuffled, "disorderfs"
    if source.dockerfile is None:
        return [f"--rootfs={copy}"], order, ""
    dockerfile = os.path.abspath(source.dockerfile)
    inside = os.path.relpath(dockerfile, os.path.abspath(original))
    if not inside.startswith(".."):
        dockerfile = os.path.join(copy, inside)
    engine = [f"--engine={source.engine}"] if source.engine else []
    # else the engine would hand out the first build's layers
    return [f"--dockerfile={dockerfile}", f"--context={copy}", "--no-engine-cache", *engine], order, ""


def share_entries(names: re.Pattern[str], cache: str) -> None:
    """Let the second cache have those entries of the first one, and nothing else of it."""
    base, target = cache_root(), os.path.join(cache, "enclavekit")
    os.mkdir(target, 0o777)
    os.chmod(target, 0o1777)  # noqa: S103 - in a directory that only the two users can reach
    for item in sorted(os.listdir(base)) if os.path.isdir(base) else []:
        entry = ENTRY.fullmatch(item)
        if entry is not None and names.fullmatch(entry["name"]):
            os.symlink(os.path.join(base, item), os.path.join(target, item))
