# SPDX-License-Identifier: Apache-2.0
"""The steps `image` and `signature`: one file from kernel, command line and ramdisks, at the place that was asked for.

The output is no cache entry, which would double it. The cache has a record of what was written where; the output is
reused if the very file that was written then is still there, by inode and time of change. An image that is to be
signed is a cache entry until it is evicted, so that a signer who could not be reached costs no second image.
"""

from __future__ import annotations

import fcntl
import os
import re
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec
from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.base.cache import NotCachedError, cache_root, cached, is_only_looking, key_of
from enclavekit_rbuilds.framework.assemble import Framework
from enclavekit_rbuilds.kernel.sources import Kernel
from enclavekit_rbuilds.manifest.model import Signing
from enclavekit_rbuilds.plan.app import AppRamdisk
from enclavekit_rbuilds.plan.source import hash_file
from enclavekit_rbuilds.plan.steps import Job, Product, Step

if TYPE_CHECKING:
    from enclavekit_eif.sign import Signer

# AWS's own command lines without `nomodules`, since a kernel that needs modules finds them in ramdisk 0
CMDLINES = {
    "x86_64": "reboot=k panic=30 pci=off console=ttyS0 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd "
    "random.trust_cpu=on",
    "aarch64": "reboot=k panic=30 pci=off console=ttyS0 random.trust_cpu=on root=/dev/ram0",
}
STALE = re.compile(r"[0-9a-f]{12}")  # ends the name of what enclavekit_eif writes until it is whole


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What decides the image beside its parts."""

    output: str
    name: str
    version: str
    arch: str
    cmdline: str | None
    custom: dict[str, Any]
    """What the metadata says beside kernel and packages."""
    signing: Signing | None


class _Record(msgspec.Struct, frozen=True):
    """What was written, and which file it is."""

    key: str
    file: tuple[int, ...]
    measurements: dict[str, str]


@dataclass(frozen=True, slots=True)
class Image:
    """A written image."""

    path: str
    """The output, or a file in the cache that is still to be signed."""
    key: str
    kernel: dict[str, Any]
    measurements: dict[str, str]
    finished: bool
    """It is at the output already, signature and all."""


def image_steps(request: ImageRequest) -> list[Step]:
    """Return the step `image` and, if it is to be signed, `signature`."""
    target, signing = os.path.abspath(request.output), request.signing
    # loaded here, so that a key that cannot sign is found before anything is made
    signer = None if signing is None else _load_signer(signing)
    signed_by = "" if signer is None else key_of(["signed", signer.certificate_pem])

    def make_image(job: Job) -> Product:
        key = key_of([job.key, signed_by])
        kernel = about_kernel(job.inputs["kernel"])
        if (measurements := _written(target, key)) is not None:
            return Product(Image(target, key, kernel, measurements, True), key, "reused")
        if is_only_looking():
            raise NotCachedError("image", key)
        _remove_stale(target)
        if signing is not None:
            unsigned = cached("image", job.key, lambda work: _write_entry(request, work, job, kernel))
            with open(os.path.join(unsigned, "image.json"), "rb") as source:
                measurements = msgspec.json.decode(source.read(), type=dict[str, str])
            return Product(Image(os.path.join(unsigned, "image.eif"), key, kernel, measurements, False), key)
        measurements = _write(request, target, job, kernel)
        _remember(target, key, measurements)
        return Product(Image(target, key, kernel, measurements, True), key, "made")

    def make_signature(job: Job) -> Product:
        image: Image = job.inputs["image"]
        if image.finished:
            return Product(image, image.key, "reused")
        assert signer is not None, "there is no such step else"
        from enclavekit_eif.sign import sign_eif

        measurements = sign_eif(image.path, target, signer).to_json()
        _remember(target, image.key, measurements)
        return Product(Image(target, image.key, image.kernel, measurements, True), image.key, "made")

    facts = (
        *(request.name, request.version, request.arch, request.cmdline or "", target),
        metadata.version("enclavekit-rbuilds"),
        msgspec.json.encode(request.custom, order="sorted").decode(),
    )
    steps = [Step("image", f"image {request.output}", ("kernel", "framework", "app"), facts, make_image)]
    if signing is not None:
        what = f"signature with {os.path.basename(signing.certificate)}"
        steps.append(Step("signature", what, ("image",), (signed_by,), make_signature))
    return steps


def about_kernel(kernel: Kernel) -> dict[str, Any]:
    """Return what the metadata says of the kernel."""
    return {
        "name": kernel.name,
        "version": kernel.version,
        "sha256": hash_file(kernel.path),
        "nitro-capable": kernel.nitro_capable,
    }


def _write(request: ImageRequest, path: str, job: Job, about: dict[str, Any]) -> dict[str, str]:
    from enclavekit_eif.metadata import make_metadata
    from enclavekit_eif.writer import write_eif

    kernel: Kernel = job.inputs["kernel"]
    framework: Framework = job.inputs["framework"]
    app: AppRamdisk = job.inputs["app"]
    document = make_metadata(
        request.name,
        request.version,
        build_tool="rbuilds",
        build_tool_version=metadata.version("enclavekit-rbuilds"),
        kernel_version=kernel.version,
        custom={"kernel": about, "packages": framework.packages, **request.custom},
    )
    cmdline = request.cmdline if request.cmdline is not None else kernel.cmdline or CMDLINES[request.arch]
    try:
        measurements = write_eif(
            path,
            kernel=kernel.path,
            cmdline=cmdline.encode(),
            ramdisks=[framework.ramdisk.path, app.ramdisk.path],
            metadata=document,
            arch=request.arch,
        )
    except OSError as exc:
        raise InputError("write", request.output, describe_cause(exc)) from exc
    return measurements.to_json()


def _write_entry(request: ImageRequest, work: str, job: Job, about: dict[str, Any]) -> None:
    measurements = _write(request, os.path.join(work, "image.eif"), job, about)
    with open(os.path.join(work, "image.json"), "wb") as out:
        out.write(msgspec.json.encode(measurements))


def _load_signer(signing: Signing) -> Signer:
    """Return who signs. Raises InputError for a key that cannot be read or is not the certificate's."""
    from enclavekit_eif.kms import kms_signer
    from enclavekit_eif.signature import load_certificate, load_signer

    if signing.kms_key is not None:
        return kms_signer(signing.kms_key, load_certificate(signing.certificate).certificate_pem)
    assert signing.key is not None, "the manifest has one of both"
    return load_signer(signing.certificate, signing.key)


def _remove_stale(target: str) -> None:
    """Remove what killed builds left beside the output; a living one holds a lock on its file."""
    folder, name = os.path.split(target)
    prefix = f".{name[:200]}."
    for item in os.listdir(folder):
        if not item.startswith(prefix) or not STALE.fullmatch(item.removeprefix(prefix)):
            continue
        path = os.path.join(folder, item)
        try:
            with open(path, "rb") as leftover:
                fcntl.flock(leftover, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
        except OSError:
            pass  # being written just now, or not ours to remove: neither stops a build


def _record_path(target: str) -> str:
    return os.path.join(cache_root(), f"image-{key_of([target])}.json")


def _written(target: str, key: str) -> dict[str, str] | None:
    """Return the measurements of the file at `target` if it is what a build with this key has left there."""
    try:
        with open(_record_path(target), "rb") as source:
            record = msgspec.json.decode(source.read(), type=_Record)
        info = os.stat(target, follow_symlinks=False)
    except (OSError, msgspec.DecodeError):
        return None
    return record.measurements if record.key == key and record.file == _identity(info) else None


def _remember(target: str, key: str, measurements: dict[str, str]) -> None:
    path = _record_path(target)
    temporary = f"{path}.{os.getpid()}"
    record = _Record(key, _identity(os.stat(target)), measurements)
    try:
        with open(temporary, "wb") as out:
            out.write(msgspec.json.encode(record))
        os.replace(temporary, path)
    except OSError:
        pass  # the image is there; the next build writes it once more


def _identity(info: os.stat_result) -> tuple[int, ...]:
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
