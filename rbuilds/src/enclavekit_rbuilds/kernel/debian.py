# SPDX-License-Identifier: Apache-2.0
"""Debian's cloud kernel: prebuilt, fetched and unpacked, never installed.

It has no VIRTIO_MMIO_CMDLINE_DEVICES and no NSM driver, so it is for the emulator; the image's metadata says so.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile

import msgspec
from enclavekit_core.errors import CommandError, InputError

from enclavekit_rbuilds.base.cache import cached, key_of
from enclavekit_rbuilds.framework import deb
from enclavekit_rbuilds.framework.debian import SNAPSHOT_VARIABLE, SUITE, Package, PackageSource, open_source
from enclavekit_rbuilds.framework.origin import Origin
from enclavekit_rbuilds.kernel.config import load_config
from enclavekit_rbuilds.kernel.model import Kernel, describe_kernel
from enclavekit_rbuilds.kernel.modules import depends_of, load_order, module_name

RECIPE = "4"  # part of the cache key: raise it when what `_fetch` writes changes
META_PACKAGES = {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64"}
IMAGE_PREFIX = "linux-image-"
# find and drive the vsock device of QEMU's microvm; stand for the NSM there
WANTED = ("virtio_mmio", "vmw_vsock_virtio_transport", "cuse")
EGRESS = {  # what diverts in an enclave with egress rules, by the language of these
    "nft": ("nft_chain_nat", "nft_redir", "nft_tproxy"),
    "iptables": (
        *("iptable_nat", "iptable_mangle", "ip6table_nat", "ip6table_mangle"),
        *("xt_tcpudp", "xt_REDIRECT", "xt_mark", "xt_TPROXY"),
    ),
}
MODULE = re.compile(r"\./(?:usr/)?lib/modules/.*/([^/]+\.ko)")
MAX_MODULE_BYTES = 64 * 1024 * 1024


class _Record(msgspec.Struct, frozen=True):
    """What the cache keeps beside the files."""

    name: str
    version: str
    modules: tuple[str, ...]
    egress_modules: dict[str, tuple[str, ...]]


def debian_kernel(arch: str, version: str | None = None) -> Kernel:
    """Return Debian's cloud kernel, from the cache or freshly fetched. Raises CommandError, InputError.

    Args: version: of the package; None: the one in the cache, else what the mirror offers now.
    """
    key = key_of(
        [
            RECIPE,
            SUITE,
            arch,
            *WANTED,
            *(name for names in EGRESS.values() for name in names),
            *([version] if version else []),
        ]
    )
    directory = cached("kernel", key, lambda work: _fetch(work, arch, version))
    with open(os.path.join(directory, "kernel.json"), "rb") as source:
        record = msgspec.json.decode(source.read(), type=_Record)
    return describe_kernel(
        os.path.join(directory, "vmlinuz"),
        record.name,
        version=record.version,
        config=load_config(os.path.join(directory, "vmlinuz.config")),
        modules=tuple(os.path.join(directory, name) for name in record.modules),
        egress_modules={
            language: tuple(os.path.join(directory, name) for name in names)
            for language, names in record.egress_modules.items()
        },
    )


def newest_version(arch: str, origin: Origin | None = None) -> str:
    """Return the version that the mirror offers now. Raises CommandError, InputError."""
    meta = META_PACKAGES[arch]
    with (
        tempfile.TemporaryDirectory(prefix="enclavekit-apt-") as directory,
        open_source(directory, arch, origin) as source,
    ):
        return source.candidates([meta])[meta].version


def _fetch(work: str, arch: str, version: str | None) -> None:
    apt = os.path.join(work, "apt")
    os.mkdir(apt)
    with open_source(apt, arch) as source:
        package = _fetch_package(source, META_PACKAGES[arch], version)
    modules = unpack_kernel(package.path, work)
    more = {}
    for language, wanted in EGRESS.items():
        everything = unpack_kernel(package.path, work, (*WANTED, *wanted))  # the same and more: what they need is first
        more[language] = tuple(name for name in everything if name not in modules)
    record = _Record(f"Debian {package.name.removeprefix(IMAGE_PREFIX)}", package.version, modules, more)
    with open(os.path.join(work, "kernel.json"), "wb") as out:
        out.write(msgspec.json.encode(record))
    shutil.rmtree(apt)


def _fetch_package(source: PackageSource, meta: str, version: str | None) -> Package:
    """Fetch the image that the meta package stands for; both have one version, as they come from one source."""
    pinned = f"={version}" if version else ""
    reason = f"the mirror does not have it (any more); name an archive that has: {SNAPSHOT_VARIABLE}"
    gone = InputError("fetch kernel", f"{meta} {version}", reason)
    names = [name for name in source.dependencies(f"{meta}{pinned}") if name.startswith(IMAGE_PREFIX)]
    if version and not names:
        raise gone
    if len(names) != 1:
        raise InputError("fetch kernel", meta, f"it depends on {len(names)} images")
    try:
        (package,) = source.fetch([f"{names[0]}{pinned}"])
    except CommandError as exc:
        if version:
            raise gone from exc
        raise
    return package


def unpack_kernel(package: str, work: str, wanted: tuple[str, ...] = WANTED) -> tuple[str, ...]:
    """Write `vmlinuz`, `vmlinuz.config` and the modules into `work`; return the modules, in load order.

    The package has no modules.dep, which depmod makes when it is installed; each module says itself what it needs.
    """
    everything = os.path.join(work, "modules")
    os.mkdir(everything)
    depends: dict[str, tuple[str, ...]] = {}
    files: dict[str, str] = {}
    with deb.open_data(package) as archive:
        for member in archive:
            target = _target(member.name) if member.isfile() else None
            if target is None or member.size > MAX_MODULE_BYTES:
                continue
            content = archive.extractfile(member)
            assert content is not None
            raw = content.read()
            if target.endswith(".ko"):
                name = module_name(target)
                depends[name], files[name] = depends_of(raw), target
                target = os.path.join("modules", target)
            with open(os.path.join(work, target), "wb") as out:
                out.write(raw)
    for name in ("vmlinuz", "vmlinuz.config"):
        if not os.path.isfile(os.path.join(work, name)):
            raise InputError("fetch kernel", package, f"there is no /boot/{name.replace('vmlinuz.', '')}-* in it")
    order = [files[name] for name in load_order(wanted, depends.get)]
    for name in order:
        os.rename(os.path.join(everything, name), os.path.join(work, name))
    shutil.rmtree(everything)
    return tuple(order)


def _target(member: str) -> str | None:
    if member.startswith("./boot/vmlinuz-"):
        return "vmlinuz"
    if member.startswith("./boot/config-"):
        return "vmlinuz.config"
    match = MODULE.fullmatch(member)
    return match[1] if match else None
