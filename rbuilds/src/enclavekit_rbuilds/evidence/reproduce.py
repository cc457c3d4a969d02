# SPDX-License-Identifier: Apache-2.0
"""Build twice, the second time in changed surroundings, and compare. Both builds are processes of their own.

<scratch>/first/NAME.eif     built where and as the user would; left out if there is an image to compare with
<scratch>/second/NAME.eif    built in what second_build.py has made of that directory
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from enclavekit_core.errors import CommandError, EnclavekitError

from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.evidence import probe
from enclavekit_rbuilds.evidence.compare import Comparison, Found, compare_images, first_difference
from enclavekit_rbuilds.evidence.facts import ImageFacts, evidence_paths, read_facts
from enclavekit_rbuilds.evidence.keep import evidence_files
from enclavekit_rbuilds.evidence.second_build import Source, prepare_second
from enclavekit_rbuilds.evidence.surroundings import HASH_SEEDS, Change, LeftOut
from enclavekit_rbuilds.evidence.verify import compare_pcrs, read_pcrs

PROGRAM = [sys.executable, "-P", "-m", "enclavekit_rbuilds.cli"]
PREFIX = "rbuilds: "
COMPLAINT = f"{PREFIX}cannot "


class BuildFailed(EnclavekitError):
    """One of the two builds failed; ends with that build's exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


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
    surroundings, source_words = prepare_second(
        wanted.source, scratch, progress, reuse_framework=wanted.reuse_framework
    )
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
    pairs = zip(evidence_files(evidence_paths(first)), evidence_files(evidence_paths(second)), strict=True)
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
