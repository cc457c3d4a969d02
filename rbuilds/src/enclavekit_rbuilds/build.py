# SPDX-License-Identifier: Apache-2.0
"""`rbuilds build`: the steps from an app to an enclave image.

The image is kernel, command line, ramdisk 0 (framework; PCR1 with the kernel) and ramdisk 1 (app and policy; PCR2).
Nothing in it depends on when, where or by whom it is built.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.app.accounts import Account, resolve_user
from enclavekit_rbuilds.app.archive import read_archive
from enclavekit_rbuilds.app.container import build_dockerfile, choose_engine
from enclavekit_rbuilds.app.directory import read_directory
from enclavekit_rbuilds.app.image_config import ImageConfig, Overrides
from enclavekit_rbuilds.app.tree import AppTree
from enclavekit_rbuilds.app.unit import make_unit, prepare_tree
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.framework.assemble import Framework, build_framework, units
from enclavekit_rbuilds.image.ramdisk import AppFile, RamdiskFile, pack_app
from enclavekit_rbuilds.kernel.sources import Kernel, debian_kernel, kernel_from_file
from enclavekit_rbuilds.manifest.clients import Client, render_clients

# AWS's own command lines without `nomodules`, since a kernel that needs modules finds them in ramdisk 0
CMDLINES = {
    "x86_64": "reboot=k panic=30 pci=off console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd "
    "random.trust_cpu=on",
    "aarch64": "reboot=k panic=30 pci=off console=ttyS0 random.trust_cpu=on root=/dev/ram0",
}
UNIT_PATH = b"service/app.service"
LISTENER_PATH = b"service/pipeline.service"
CLIENTS_PATH = b"etc/enclavekit/clients.yaml"


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build; exactly one of `dockerfile`, `archive` and `rootfs` is set."""

    output: str
    dockerfile: str | None = None
    context: str | None = None
    """Directory that a Dockerfile's COPY sees; default: the Dockerfile's own."""
    archive: str | None = None
    rootfs: str | None = None
    engine: str = ""
    kernel: str | None = None
    cmdline: str | None = None
    framework_rootfs: str | None = None
    clients: tuple[Client, ...] = ()
    name: str | None = None
    version: str = "1.0"
    overrides: tuple[Overrides, ...] = ()
    """Applied in this order."""
    arch: str = "x86_64"
    compression: str = "zstd"


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What was built, for people and for `--json`."""

    eif: str
    size: int
    measurements: dict[str, str]
    kernel: dict[str, Any]
    parts: dict[str, dict[str, int]]
    """Part -> bytes as stored and, for ramdisks, unpacked: what they take of the enclave's memory."""
    packages: dict[str, str] = field(default_factory=dict)


def run_build(request: BuildRequest, progress: Progress) -> BuildResult:
    """Build the image. Raises EnclavekitError; then there is no output, and what was there before is untouched."""
    target = os.path.abspath(request.output)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder) or os.path.isdir(target):
        raise InputError("write", request.output, "it is a directory" if os.path.isdir(target) else "no such directory")
    with tempfile.TemporaryDirectory(prefix="rbuilds-") as scratch:
        tree, config = read_app(request, scratch, progress)
        for overrides in request.overrides:
            config = overrides.apply(config)
        account = resolve_user(tree, config.user)
        prepare_tree(tree, config, account)
        shared = tree.resolve((b"data",))
        if shared is not None and shared.children:
            progress.note("what the image has in /data is not seen in the enclave: the shared /data is mounted there")
        unit = make_unit(tree, config, account)
        kernel = find_kernel(request, progress)
        framework = build_framework(
            kernel, request.arch, request.compression, progress, ready_root=request.framework_rootfs
        )
        with progress.step("app ramdisk"):
            files = app_files(unit, request.clients, account)
            app = pack_app(tree, files, os.path.join(scratch, "app.ramdisk"), request.compression)
        with progress.step(f"image {request.output}"):
            return write_image(request, target, kernel, framework, app)


def read_app(request: BuildRequest, scratch: str, progress: Progress) -> tuple[AppTree, ImageConfig]:
    """Return the app's files and how it is to be run, from whichever source the request names."""
    if request.rootfs is not None:
        with progress.step(f"app from directory {request.rootfs}"):
            return read_directory(request.rootfs), ImageConfig()
    archive = request.archive
    if request.dockerfile is not None:
        engine = choose_engine(request.engine)
        archive = os.path.join(scratch, "image.tar")
        context = request.context or os.path.dirname(os.path.abspath(request.dockerfile))
        with progress.step(f"app from {request.dockerfile} by {engine}"):
            build_dockerfile(request.dockerfile, context, engine, archive)
    assert archive is not None, "the command line asks for exactly one source"
    with progress.step(f"layers of {request.archive or request.dockerfile}"):
        return read_archive(archive, scratch, request.arch, progress)


def find_kernel(request: BuildRequest, progress: Progress) -> Kernel:
    """Return the builder's kernel or Debian's."""
    if request.kernel is not None:
        return kernel_from_file(request.kernel)
    with progress.step("kernel: Debian's, for the emulator only"):
        return debian_kernel(request.arch)


def app_files(unit: str, clients: tuple[Client, ...], account: Account) -> list[AppFile]:
    """Return what ramdisk 1 holds beside the app's root; /data belongs to the app, which keeps its state there."""
    files = [
        AppFile(b"data", None, uid=account.uid, gid=account.gid),
        AppFile(UNIT_PATH, unit.encode()),
    ]
    if clients:
        files.append(AppFile(CLIENTS_PATH, render_clients(clients)))
    else:  # no list, no listener: a unit that fails for want of a list would only fill the log
        files.append(AppFile(LISTENER_PATH, (units()["pipeline.service"] + "ServiceEnable = false\n").encode()))
    return files


def write_image(
    request: BuildRequest, target: str, kernel: Kernel, framework: Framework, app: RamdiskFile
) -> BuildResult:
    """Write the EIF and return what is in it."""
    from enclavekit_eif.metadata import make_metadata
    from enclavekit_eif.writer import write_eif

    about_kernel = {
        "name": kernel.name,
        "version": kernel.version,
        "sha256": _sha256(kernel.path),
        "nitro-capable": kernel.nitro_capable,
    }
    cmdline = CMDLINES[request.arch] if request.cmdline is None else request.cmdline
    name = request.name or os.path.splitext(os.path.basename(target))[0]
    document = make_metadata(
        name,
        request.version,
        build_tool="rbuilds",
        build_tool_version=metadata.version("enclavekit-rbuilds"),
        kernel_version=kernel.version,
        custom={"kernel": about_kernel, "packages": framework.packages},
    )
    try:
        measurements = write_eif(
            target,
            kernel=kernel.path,
            cmdline=cmdline.encode(),
            ramdisks=[framework.ramdisk.path, app.path],
            metadata=document,
            arch=request.arch,
        )
        size = os.stat(target).st_size
    except OSError as exc:
        raise InputError("write", request.output, describe_cause(exc)) from exc
    return BuildResult(
        eif=request.output,
        size=size,
        measurements=measurements.to_json(),
        kernel=about_kernel,
        parts={
            "kernel": {"stored": os.stat(kernel.path).st_size},
            "framework": {"stored": framework.ramdisk.size, "unpacked": framework.ramdisk.unpacked},
            "app": {"stored": app.size, "unpacked": app.unpacked},
        },
        packages=framework.packages,
    )


def _sha256(path: str) -> str:
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
