# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an image before anybody boots it: its bytes, its kernel, its memory."""

from __future__ import annotations

from typing import cast

from enclavekit_core.errors import EnclavekitError, InputError
from enclavekit_eif.check import Severity as EifSeverity
from enclavekit_eif.check import check_eif

from enclavekit_rbuilds.run.findings import Finding, Severity, ok
from enclavekit_rbuilds.run.image import Image, read_image
from enclavekit_rbuilds.run.model import BackendName
from enclavekit_rbuilds.run.sizing import default_memory_mib, memory_sum

# about the kernel, its command line and what it can read: an emulated enclave on the host's kernel meets none of it
OF_THE_KERNEL = ("kernel-", "cmdline-", "ramdisk-")


def open_image(path: str, backend: BackendName | None) -> tuple[Image | None, list[Finding]]:
    """Read an image and check its bytes; None where it cannot be read at all."""
    try:
        findings = [
            Finding(
                _severity(found.severity, found.name, backend),
                found.name if found.name.startswith(OF_THE_KERNEL) else f"image-{found.name}",
                found.text,
                f"nitro-cli says {found.code}: rbuilds explain {found.code}" if found.code else "",
                found.cure,
            )
            for found in check_eif(path)
        ]
        image = read_image(path)
    except EnclavekitError as exc:
        return None, [
            Finding("error", "image-unreadable", str(exc), "it is damaged, or no enclave image (E35)", "build it again")
        ]
    if any(finding.severity == "error" for finding in findings):
        return image, findings
    return image, [ok("image", f"{path}: {image.name}, {image.arch}, its bytes are whole"), *findings]


def _severity(found: EifSeverity, name: str, backend: BackendName | None) -> Severity:
    if backend != "nitro-cli" and name.startswith(OF_THE_KERNEL):
        return "note"
    return cast("Severity", str(found))


def check_bytes(path: str) -> None:
    """Refuse an image that Nitro would refuse for what is in it. Raises InputError."""
    _, findings = open_image(path, "nitro-cli")
    for finding in findings:
        if finding.severity == "error":
            raise InputError("run", path, f"{finding.text}: {finding.cause}; cure: {finding.cure}")


def diagnose_image(image: Image, memory_mib: int | None) -> list[Finding]:
    """Judge what an image says about itself. Pure.

    Args:
        memory_mib: what it is to be run with; None: what it asks for, or needs.
    """
    return [*_kernel(image), _memory(image, memory_mib)]


def _kernel(image: Image) -> list[Finding]:
    """Return what is known of the kernel where nothing speaks against it: `open_image` finds what does."""
    if image.nitro_capable is None:
        return [
            Finding(
                "note",
                "kernel-unknown",
                "nobody has looked whether the image's kernel boots on Nitro",
                "the image's metadata does not say so",
                "rbuilds kernel-check CONFIG tells it from the kernel's configuration",
            )
        ]
    return [ok("kernel", f"kernel {image.kernel} finds Nitro's devices")] if image.nitro_capable else []


def _memory(image: Image, memory_mib: int | None) -> Finding:
    needed = image.size.needed_mib
    asked = memory_mib if memory_mib is not None else image.resources.memory_mib
    if asked is not None and asked < needed:
        return Finding(
            "error",
            "memory-below-image",
            f"{asked} MiB are asked for, the image needs {memory_sum(image.size)}",
            "Nitro refuses less than four times the image (E26), and while it boots, the image lies there packed "
            "and unpacked side by side",
            f"ask for {needed} MiB or more (--memory, or resources.memory_mib in enclave.yaml)",
        )
    given = asked or default_memory_mib(image.size, len(image.services))
    return ok("memory-needed", f"memory: {given} MiB; to boot, the image needs {memory_sum(image.size)}")
