# SPDX-License-Identifier: Apache-2.0
"""Find what nitro-cli, the hypervisor or the kernel would refuse about an image, before they do.

A finding has a severity, what is wrong, and what helps; where nitro-cli has an error number for it, that number.
"""

from __future__ import annotations

import datetime
import enum
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from enclavekit_core.errors import InputError, VerificationError

from enclavekit_eif.kernel_format import kernel_format
from enclavekit_eif.measure import Measurements, measure
from enclavekit_eif.model import SectionType
from enclavekit_eif.ramdisk_check import RamdiskFacts, read_ramdisks
from enclavekit_eif.reader import Eif, arch_name, read_eif

MAX_KERNEL_CMDLINE_BYTES = 2048  # COMMAND_LINE_SIZE of both architectures; the hypervisor appends device parameters
DEVICE_PARAMETERS_BYTES = 256  # "virtio_mmio.device=4K@0x...:n" a few times
ORDER = (SectionType.KERNEL, SectionType.CMDLINE, SectionType.METADATA, SectionType.RAMDISK, SectionType.SIGNATURE)
OLD_KERNEL = re.compile(r"(?:[1-4]|5\.[0-8])(?:\.|$)")  # zstd ramdisks came with Linux 5.9


class Severity(enum.StrEnum):
    ERROR = "error"
    """It will not start."""
    WARNING = "warning"
    """It may not, or something is lost."""
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    name: str
    """Stable, for machines."""
    text: str
    """What is so."""
    cure: str
    code: str = ""
    """nitro-cli's error number."""


def check_eif(path: str | os.PathLike[str], *, at: datetime.datetime | None = None) -> list[Finding]:
    """Return what is wrong with the image at `path`, the worst first; nothing if it is good.

    Args: at: the time to judge the certificate at; None: now.
    Raises: InputError if there is no file to read. One that is no good image is a finding.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb"):
            pass
    except (OSError, ValueError):
        read_eif(path)  # says what is the matter
        raise
    try:
        with read_eif(path) as eif:
            found = list(_check(eif, at or datetime.datetime.now(datetime.UTC)))
    except InputError as exc:
        cure = "copy the image again; if that does not help, build it again"
        return [Finding(Severity.ERROR, "structure", exc.reason, cure, "E35")]
    return sorted(found, key=lambda finding: list(Severity).index(finding.severity))


def _check(eif: Eif, at: datetime.datetime) -> Iterator[Finding]:
    measured = measure(eif)
    if not measured.crc_ok:
        yield _error(
            "crc", "the stored CRC is not that of the bytes", "the file is damaged: copy or build it again", "E36"
        )
    yield from _check_layout(eif)
    yield from _check_signature(eif, measured, at)
    yield from _check_kernel(eif)
    yield from _check_ramdisks(eif)
    yield from _check_cmdline(eif)


def _check_layout(eif: Eif) -> Iterator[Finding]:
    kinds = [section.type for section in eif.sections]
    if eif.metadata is None:
        cure = "build it with a newer tool if metadata is wanted"
        yield Finding(
            Severity.NOTE, "metadata", f"version {eif.version} has no metadata: no name, no build facts", cure
        )
    if kinds != sorted(kinds, key=ORDER.index):
        order = ", ".join(kind.name.lower() for kind in kinds)
        cure = "nothing has to be done; builders write kernel, cmdline, metadata, ramdisks, signature"
        yield Finding(Severity.NOTE, "section-order", f"sections in an unusual order: {order}", cure)
    if len(eif.ramdisks) == 1:
        text = "one ramdisk only: PCR2 says nothing, PCR1 equals PCR0"
        yield Finding(Severity.NOTE, "one-ramdisk", text, "put the app into a ramdisk of its own to tell it by PCR2")


def _check_signature(eif: Eif, measured: Measurements, at: datetime.datetime) -> Iterator[Finding]:
    if eif.signature is None:
        return
    from enclavekit_eif.moment import expiry_warning, validity_problem
    from enclavekit_eif.signature import read_signature, verify_signature

    signature = read_signature(eif)
    try:
        verify_signature(signature, measured.pcr0)
    except VerificationError as exc:
        yield _error("signature", exc.reason, "sign the image again: eif sign", "E59")
    certificate = signature.certificate()
    if problem := validity_problem(certificate, at):
        cure = "sign the image again with a valid certificate; PCR8 changes with it"
        yield _error(
            "certificate", f"the signing certificate is {problem}".replace("is expired", "expired"), cure, "E59"
        )
    elif warning := expiry_warning(certificate, at):
        cure = "sign the image again in time; PCR8 changes with the certificate"
        yield Finding(Severity.WARNING, "certificate", f"the signing certificate {warning}", cure)


def _check_kernel(eif: Eif) -> Iterator[Finding]:
    with eif.open_section(eif.kernel) as source:
        found = kernel_format(source.read(4096))
    arch = arch_name(eif)
    if found is None:
        wanted = "a bzImage" if arch == "x86_64" else "an uncompressed Image"
        yield _error("kernel-format", "the kernel section is no kernel", f"{arch} needs {wanted}", "E36")
    elif not found.bootable:
        yield _error("kernel-format", f"the kernel is {found.name}", found.cure, "E36")
    elif found.arch != arch:
        text = f"the image is for {arch}, its kernel ({found.name}) for {found.arch}"
        yield _error("kernel-arch", text, "build it with the other --arch, or the other kernel", "E36")
    kernel = _custom(eif).get("kernel")
    if isinstance(kernel, dict) and kernel.get("nitro-capable") is False:
        text = f"the kernel {kernel.get('name', '')} {kernel.get('version', '')} is for the emulator only".replace(
            "  ", " "
        )
        cure = "for Nitro take its own blobs or a kernel with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES: rbuilds kernel make"
        yield _error("kernel-emulator-only", text, cure, "E36")


def _check_ramdisks(eif: Eif) -> Iterator[Finding]:
    try:
        facts = read_ramdisks(eif)
    except InputError as exc:
        cure = "the kernel unpacks newc cpio archives, plain or compressed: pack the ramdisk again"
        yield _error("ramdisk", exc.reason, cure, "E36")
        return
    yield from _check_init(facts)
    version = eif.metadata["BuildMetadata"]["KernelVersion"] if eif.metadata else ""
    if "zstd" in facts.compressions:
        cure = "build with --compression gzip, or with a kernel of 5.9 or later"
        if OLD_KERNEL.match(version):
            yield _error("ramdisk-zstd", f"Linux {version} cannot read a ramdisk in zstd", cure, "E36")
        elif not version[:1].isdigit():
            text = "a ramdisk in zstd, and the image does not say which kernel it has"
            yield Finding(Severity.WARNING, "ramdisk-zstd", text, f"AWS's 4.14 cannot read it: {cure}")
    for index in facts.misaligned:
        text = f"ramdisk {index} is an uncompressed archive that does not start at a multiple of 4"
        yield _error(
            "ramdisk-alignment", text, "compress all ramdisks alike, or none: the kernel would not find it", "E36"
        )


def _check_init(facts: RamdiskFacts) -> Iterator[Finding]:
    if facts.init_mode is None:
        cure = "put a program at /init of the first ramdisk"
        yield _error("init", "no ramdisk has /init, so that the kernel has nothing to start", cure, "E36")
    elif not facts.init_executable:
        yield _error(
            "init", f"/init has mode {facts.init_mode:o} and cannot be executed", "chmod 755 before packing", "E36"
        )


def _check_cmdline(eif: Eif) -> Iterator[Finding]:
    text = eif.cmdline()
    words = text.decode(errors="replace").split()
    names = {word.partition("=")[0] for word in words}
    limit = MAX_KERNEL_CMDLINE_BYTES - DEVICE_PARAMETERS_BYTES
    if len(text) > limit:
        cure = (
            f"keep below {limit}: the hypervisor appends its devices, and the kernel cuts at {MAX_KERNEL_CMDLINE_BYTES}"
        )
        yield _error("cmdline-length", f"the kernel command line has {len(text)} bytes", cure, "E36")
    if text != text.strip():
        cure = "leave it out; it changes PCR0 and PCR1"
        yield Finding(Severity.NOTE, "cmdline-space", "the kernel command line has white space around it", cure)
    for name, severity, lost in (
        ("console", Severity.WARNING, "nothing of the boot can be read, not even in debug mode (console=ttyS0)"),
        ("panic", Severity.WARNING, "an enclave whose kernel panics stays and holds its memory (panic=30)"),
        ("reboot", Severity.WARNING, "an enclave that ends may hang instead (reboot=k)"),
    ):
        if name not in names:
            cure = "the command lines of AWS's kernels have it"
            yield Finding(severity, f"cmdline-{name}", f"without {name}= on the kernel command line, {lost}", cure)


def _custom(eif: Eif) -> dict[str, object]:
    custom = eif.metadata["CustomMetadata"] if eif.metadata else None
    return custom if isinstance(custom, dict) else {}


def _error(name: str, text: str, cure: str, code: str) -> Finding:
    return Finding(Severity.ERROR, name, text, cure, code)
