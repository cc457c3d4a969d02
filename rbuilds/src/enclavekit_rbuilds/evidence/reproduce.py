# SPDX-License-Identifier: Apache-2.0
"""Build twice, the second time in changed surroundings, and compare. Both builds are processes of their own.

<scratch>/first/NAME.eif     built where and as the user would; left out if there is an image to compare with
<scratch>/second/            belongs to the second build's user
    NAME.eif  work/  home/  cache/  tmp/  source/  shuffled/
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from enclavekit_core.errors import CommandError, EnclavekitError, InputError, describe_cause

from enclavekit_rbuilds.base.cache import ENTRY, cache_root
from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.evidence import probe
from enclavekit_rbuilds.evidence.compare import Comparison, Found, compare_images, first_difference
from enclavekit_rbuilds.evidence.facts import EvidencePaths, ImageFacts, evidence_paths, read_facts
from enclavekit_rbuilds.evidence.reorder import copy_reordered
from enclavekit_rbuilds.evidence.surroundings import (
    HASH_SEEDS,
    OTHER_UID,
    Change,
    Host,
    LeftOut,
    OrderChange,
    Places,
    Surroundings,
    UserChange,
    plan_surroundings,
)
from enclavekit_rbuilds.evidence.verify import compare_pcrs, read_pcrs

PROGRAM = [sys.executable, "-P", "-m", "enclavekit_rbuilds.cli"]
# cache entries that hold what is the same for every app: kernel and framework
MADE_KERNELS = re.compile(r"kernel-made")
SHARED_ENTRIES = re.compile(r"base|ramdisk|(kernel|framework)(-[a-z0-9-]+)?")


PREFIX = "rbuilds: "
COMPLAINT = f"{PREFIX}cannot "


class BuildFailed(EnclavekitError):
    """One of the two builds failed; ends with that build's exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


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


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What to build, by the words of `rbuilds build`, and what to compare it with."""

    name: str
    """File name of the image; it is in the image's metadata unless another name was given."""
    words: tuple[str, ...]
    absolute_words: tuple[str, ...]
    """The same with absolute paths, for a build in another directory."""
    source: Source
    against: str | None = None
    """An image: then only the build in changed surroundings takes place."""
    against_pcrs: str | None = None
    build_once: bool = False
    """Somebody else compares: only the build in changed surroundings takes place."""
    reuse_framework: bool = False


@dataclass(slots=True)
class Outcome:
    """What came out."""

    equal: bool
    first: ImageFacts | None
    """None where only registers were compared with."""
    second: ImageFacts
    framework: str
    """`rebuilt`, `reused` or `given`."""
    changed: list[Change] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    differences: list[Found] = field(default_factory=list)
    evidence: dict[str, bool] = field(default_factory=dict)
    """Of two images that were both built here: file of evidence -> whether it is the same. Images are judged alone: an
    engine may give equal files another digest."""


@contextlib.contextmanager
def scratch_directory() -> Iterator[str]:
    """Yield a directory that another user can reach into, but not list; what is mounted in it goes first."""
    path = tempfile.mkdtemp(prefix="rbuilds-reproduce-")
    try:
        os.chmod(path, 0o711)  # noqa: S103 - the second build's user has to come through
        yield path
    finally:
        for mountpoint in glob.glob(os.path.join(path, "second/shuffled/*")):
            probe.unmount(mountpoint)
        shutil.rmtree(path, ignore_errors=True)


def reproduce(wanted: Reproduction, scratch: str, progress: Progress) -> Outcome:
    """Build and compare. Raises EnclavekitError if a build fails or an input cannot be used."""
    first_path = os.path.join(scratch, "first", wanted.name)
    expected = read_pcrs(wanted.against_pcrs) if wanted.against_pcrs is not None else None
    given = read_facts(wanted.against) if wanted.against is not None else None
    os.mkdir(os.path.dirname(first_path))
    surroundings, source_words = prepare_second(wanted, scratch, progress)
    for item in surroundings.left_out:
        progress.note(f"{item.name} was left the same: {item.why}")
    if wanted.reuse_framework:
        progress.note("kernel and framework were not rebuilt (--reuse-framework): only the app was")
    if given is None and expected is None and not wanted.build_once:
        with progress.step("first build, as it is"):
            environment = {**os.environ, "PYTHONHASHSEED": HASH_SEEDS[0]}
            _build([*PROGRAM, "build", *wanted.words, f"--output={first_path}", "--quiet"], "first", environment, None)
        given = read_facts(first_path)
    second_path = os.path.join(scratch, "second", wanted.name)
    with progress.step("second build, in changed surroundings"):
        build = ["build", *wanted.absolute_words, *source_words, f"--output={second_path}", "--quiet"]
        work = os.path.join(scratch, "second/work")
        _build([*surroundings.prefix, *build], "second", surroundings.environment, work)
    built = read_facts(second_path)
    if wanted.build_once:
        comparison = Comparison(True)
    elif expected is not None:
        comparison = compare_registers(wanted.against_pcrs or "", expected, built)
    else:
        comparison = compare_images(wanted.against or first_path, second_path)
    framework = "reused" if wanted.reuse_framework else "rebuilt"
    if any(word.startswith("--framework-rootfs=") for word in wanted.words):
        framework = "given"
    return Outcome(
        comparison.equal,
        given,
        built,
        framework,
        surroundings.changed,
        surroundings.left_out,
        comparison.differences,
        compare_evidence(first_path, second_path),
    )


def compare_evidence(first: str, second: str) -> dict[str, bool]:
    """Return file name -> whether the two builds wrote the same; empty where there are no two."""
    pairs = zip(_files(evidence_paths(first)), _files(evidence_paths(second)), strict=True)
    return {
        os.path.basename(one): first_difference(one, other) is None
        for one, other in pairs
        if os.path.exists(one) and os.path.exists(other)
    }


def _build(argv: list[str], which: str, environment: dict[str, str], directory: str | None) -> None:
    """Run a build. Raises BuildFailed with the build's own message and exit code."""
    try:
        run(argv, f"build the {which} time", env=environment, cwd=directory)
    except CommandError as exc:
        said = [line for line in exc.stderr_tail.splitlines() if line.startswith(COMPLAINT)]
        if not said:
            raise
        raise BuildFailed(f"{said[-1].removeprefix(PREFIX)} (the {which} build)", exc.returncode) from exc


def compare_registers(path: str, expected: dict[str, str], built: ImageFacts) -> Comparison:
    """Compare an image with registers that were written down."""
    differences = [
        Found("registers", "", check.what, str(check.stated), str(check.actual), _register_text(check.what, path))
        for check in compare_pcrs(path, expected, built.pcrs())
        if not check.holds
    ]
    return Comparison(not differences, differences)


def _register_text(name: str, path: str) -> str:
    parts = {"PCR0": "the whole image", "PCR1": "kernel and framework", "PCR2": "the app and its policy"}
    what = f" ({parts[name]})" if name in parts else ""
    return f"{name}{what} is not that of {path}"


def prepare_second(wanted: Reproduction, scratch: str, progress: Progress) -> tuple[Surroundings, list[str]]:
    """Make the second build's directories and sources; return its surroundings and the words that name the sources."""
    second = os.path.join(scratch, "second")
    places = Places(*(os.path.join(second, name) for name in ("work", "home", "cache", "tmp")))
    for directory in (second, places.work, places.home, places.cache, places.temporary):
        os.mkdir(directory, 0o755)
    source = wanted.source
    with_engine = source.dockerfile is not None
    shared = SHARED_ENTRIES if wanted.reuse_framework else MADE_KERNELS if source.made_kernel else None
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


def keep_images(scratch: str, name: str, directory: str) -> list[str]:
    """Copy what was built to `directory`, as first.eif and second.eif with their evidence. Raises InputError."""
    kept = []
    try:
        os.makedirs(directory, exist_ok=True)
        for which in ("first", "second"):
            image = os.path.join(scratch, which, name)
            if os.path.exists(image):
                kept.append(os.path.join(directory, f"{which}.eif"))
                place_image(image, kept[-1])
    except OSError as exc:
        raise InputError("write", directory, describe_cause(exc)) from exc
    return kept


def place_image(image: str, target: str) -> None:
    """Copy an image and the evidence beside it to `target`, each file whole or not at all. Raises InputError."""
    pairs = [(image, target), *zip(_files(evidence_paths(image)), _files(evidence_paths(target)), strict=True)]
    for source, place in pairs:
        if not os.path.exists(source):
            continue
        descriptor, part = tempfile.mkstemp(prefix=".rbuilds-", dir=os.path.dirname(os.path.abspath(place)))
        os.close(descriptor)
        try:
            shutil.copyfile(source, part)
            os.chmod(part, 0o644)
            os.rename(part, place)
        except OSError as exc:
            os.unlink(part)
            raise InputError("write", place, describe_cause(exc)) from exc


def _files(paths: EvidencePaths) -> tuple[str, str, str]:
    return paths.pcrs, paths.sbom, paths.provenance
