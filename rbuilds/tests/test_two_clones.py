# SPDX-License-Identifier: Apache-2.0
"""Two people clone one commit into two directories and build: the same bytes, framework and kernel included."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
from enclavekit_rbuilds.evidence.surroundings import OTHER_UID

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"  # of the second person, who may not read the first one's home
BUILD = "import sys; from enclavekit_rbuilds.cli import main; sys.exit(main())"
LAUNCH = [sys.executable, "-P", "-m", "enclavekit_rbuilds.evidence.launch"]
TIMEOUT_S = 600


def same_python(program: str) -> bool:
    """Whether `program` can load the compiled modules of this environment."""
    show = "import sys; print(sys.version_info[:2])"
    try:
        done = subprocess.run([program, "-c", show], capture_output=True, text=True)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.strip() == str(sys.version_info[:2])


def second_person() -> tuple[list[str], str]:
    """Return how to run something as somebody else, and their Python."""
    namespace = ["unshare", "--user", f"--map-user={OTHER_UID}", f"--map-group={OTHER_UID}"]
    if os.geteuid() == 0 and same_python(SYSTEM_PYTHON):
        return [*LAUNCH, "--user", str(OTHER_UID), "--umask", "077", "--"], SYSTEM_PYTHON
    if shutil.which("unshare") and subprocess.run([*namespace, "true"], capture_output=True).returncode == 0:
        return [*namespace, *LAUNCH, "--umask", "077", "--"], sys.executable
    pytest.skip("there is no way to be a second user here: neither root nor user namespaces")


@pytest.fixture
def place():
    """A directory that both can reach, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="two-clones-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def clone_and_build(directory: Path, person: list[str], python: str, owner: int | None) -> tuple[bytes, str]:
    """Clone the commit into `directory`, make the app there and build it; return the image and its builder's uid."""
    clone = directory / "enclavekit"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    (directory / "home").mkdir()
    if owner is not None:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, owner, owner, follow_symlinks=False)
    sources = [str(path) for path in sorted([*clone.glob("*/src"), *clone.glob("libs/*/src")])]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PYTHON"))},
        "HOME": str(directory / "home"),
        "PYTHONPATH": os.pathsep.join([*sources, sysconfig.get_paths()["purelib"]]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    # the launcher is this checkout's, what it launches is the clone's
    own = {**environment, "PYTHONPATH": str(ROOT / "rbuilds/src")}
    wrapped = [*person, "env", f"PYTHONPATH={environment['PYTHONPATH']}"]

    def run(*words: object) -> bytes:
        done = subprocess.run(
            [*wrapped, *map(str, words)], cwd=directory, env=own, capture_output=True, timeout=TIMEOUT_S
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    run(python, clone / "reference_apps/notes/make_rootfs", "notes.rootfs")
    flags = ["--rootfs", "notes.rootfs", "--config", clone / "reference_apps/notes/enclave.yaml", "-o", "notes.eif"]
    report = json.loads(run(python, "-P", "-c", BUILD, "build", *flags, "--json", "--quiet"))
    image = (directory / "notes.eif").read_bytes()
    assert len(image) == report["size"]
    return image, run("id", "-u").decode().strip()


@pytest.mark.long
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout: there is nothing to clone")
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg is not installed")
def test_two_people_get_the_same_image(place: Path) -> None:
    person, python = second_person()
    (place / "alice").mkdir()
    (place / "bob" / "work").mkdir(parents=True)
    (place / "bob").chmod(0o755)
    first, alice = clone_and_build(place / "alice", [], sys.executable, None)
    owner = OTHER_UID if os.geteuid() == 0 and python == SYSTEM_PYTHON else None
    second, bob = clone_and_build(place / "bob" / "work", person, python, owner)
    assert alice != bob == str(OTHER_UID)
    assert first == second
