# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an image before anybody boots it: its bytes, its kernel, its memory."""

from __future__ import annotations

from enclavekit_core.errors import EnclavekitError, InputError

from enclavekit_rbuilds.run.findings import Finding, ok
from enclavekit_rbuilds.run.image import Image, read_image
from enclavekit_rbuilds.run.model import BackendName
from enclavekit_rbuilds.run.sizing import memory_sum, needed_memory_mib


def open_image(path: str) -> tuple[Image | None, list[Finding]]:
    """Read an image and check its bytes; None where it cannot be read at all."""
    from enclavekit_eif.measure import measure
    from enclavekit_eif.reader import read_eif

    try:
        image = read_image(path)
        with read_eif(path) as eif:
            measurements = measure(eif)
            signature = _check_signature(eif, measurements.pcr0) if eif.signature is not None else []
    except EnclavekitError as exc:
        return None, [
            Finding("error", "image-unreadable", str(exc), "it is damaged, or no enclave image (E35)", "build it again")
        ]
    if not measurements.crc_ok:
        crc = Finding(
            "error",
            "image-crc",
            f"the CRC of {path} does not match",
            "the file was changed or cut after it was built; Nitro refuses it (E36, E39)",
            "copy or build it again",
        )
        return image, [crc, *signature]
    return image, [ok("image", f"{path}: {image.name}, {image.arch}, its bytes are whole"), *signature]


def check_bytes(path: str) -> None:
    """Refuse an image that the hypervisor would refuse for its bytes. Raises InputError."""
    _, findings = open_image(path)
    for finding in findings:
        if finding.severity == "error":
            raise InputError("run", path, f"{finding.text}: {finding.cause}; cure: {finding.cure}")


def diagnose_image(image: Image, backend: BackendName | None, memory_mib: int | None) -> list[Finding]:
    """Judge what an image says about itself. Pure.

    Args:
        memory_mib: what it is to be run with; None: what it asks for, or needs.
    """
    return [_kernel(image, backend), _memory(image, memory_mib)]


def _kernel(image: Image, backend: BackendName | None) -> Finding:
    if image.nitro_capable is False:
        return Finding(
            "error" if backend == "nitro-cli" else "note",
            "kernel-emulator-only",
            f"the image's kernel ({image.kernel}) is for the emulator only",
            "Nitro announces its devices on the kernel's command line, and this kernel does not look there "
            "(VIRTIO_MMIO_CMDLINE_DEVICES): it would hang until E36",
            "build the image with another kernel: rbuilds kernel make, or the host's own blobs",
        )
    if image.nitro_capable is None:
        return Finding(
            "note",
            "kernel-unknown",
            "nobody has looked whether the image's kernel boots on Nitro",
            "the image's metadata does not say so",
            "rbuilds kernel-check CONFIG tells it from the kernel's configuration",
        )
    return ok("kernel", f"kernel {image.kernel} finds Nitro's devices")


def _memory(image: Image, memory_mib: int | None) -> Finding:
    needed = needed_memory_mib(image.size_bytes)
    asked = memory_mib if memory_mib is not None else image.resources.memory_mib
    if asked is not None and asked < needed:
        return Finding(
            "error",
            "memory-below-image",
            f"{asked} MiB are asked for, the image needs {memory_sum(image.size_bytes)}",
            "an enclave needs four times its image: as loaded, as unpacked, and room to run (E26)",
            f"ask for {needed} MiB or more (--memory, or resources.memory_mib in enclave.yaml)",
        )
    return ok("memory-needed", f"memory: {asked or needed} MiB; the image needs {memory_sum(image.size_bytes)}")


def _check_signature(eif: object, pcr0: bytes) -> list[Finding]:
    import datetime

    from enclavekit_eif.reader import Eif
    from enclavekit_eif.signature import read_signature, verify_signature

    assert isinstance(eif, Eif)
    try:
        signature = read_signature(eif)
        verify_signature(signature, pcr0)
        certificate = signature.certificate()
    except EnclavekitError as exc:
        return [
            Finding("error", "image-signature", str(exc), "the signature is not one of this image (E59)", "eif sign")
        ]
    now = datetime.datetime.now(datetime.UTC)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not start <= now <= end:
        return [
            Finding(
                "error",
                "image-certificate-expired",
                f"the signing certificate is valid from {start:%Y-%m-%d} to {end:%Y-%m-%d}",
                "the hypervisor refuses an image whose certificate is not valid now (E36, E39, E11)",
                "sign it again with a new certificate: eif sign",
            )
        ]
    return [ok("image-signature", f"signed; the certificate is valid until {end:%Y-%m-%d}")]
