# SPDX-License-Identifier: Apache-2.0
"""Build a Dockerfile with whichever engine is there, and get the image out as an archive.

Nothing stays behind in the engine but its own build cache: the image is removed again.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.base.command import run

ENGINES = ("docker", "podman", "buildah")
PROBE_TIMEOUT_S = 20.0
EPOCH = "0"  # engines that know SOURCE_DATE_EPOCH stamp layers with it; our packing ignores times anyway


def choose_engine(asked: str = "") -> str:
    """Return the engine to use: `asked`, else the first that is installed and answers. Raises InputError."""
    complaints = []
    for engine in (asked,) if asked else ENGINES:
        if shutil.which(engine) is None:
            complaints.append(f"{engine} is not installed")
            continue
        try:
            answer = subprocess.run([engine, "info"], capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            complaints.append(f"{engine} does not answer")
            continue
        if answer.returncode == 0:
            return engine
        complaints.append(f"{engine} is installed but does not work")
    raise InputError("find", "a container engine", "; ".join(complaints))


def build_dockerfile(dockerfile: str, context: str, engine: str, archive: str) -> None:
    """Build `dockerfile` in `context` and write the image to `archive` in docker-save form. Raises CommandError."""
    if not os.path.isfile(dockerfile):
        raise InputError("read", dockerfile, "there is no such file")
    tag = f"localhost/enclavekit-build:{secrets.token_hex(8)}"
    what = f"build {dockerfile}"
    env = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "DOCKER_BUILDKIT": "1"}
    if engine == "buildah":
        # chroot isolation needs neither user namespaces nor a runtime, so that it works inside a container as well
        run(["buildah", "build", "--isolation", "chroot", "-f", dockerfile, "-t", tag, context], what, env=env)
        save = ["buildah", "push", tag, f"docker-archive:{archive}:{tag}"]
        remove = ["buildah", "rmi", tag]
    else:
        run([engine, "build", "-f", dockerfile, "-t", tag, context], what, env=env)
        save = [engine, "save", "-o", archive, tag]
        remove = [engine, "rmi", tag]
    try:
        run(save, f"save the image of {dockerfile}", env=env)
    finally:
        subprocess.run(remove, capture_output=True, check=False, timeout=PROBE_TIMEOUT_S)
