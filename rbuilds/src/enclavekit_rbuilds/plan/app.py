# SPDX-License-Identifier: Apache-2.0
"""The step `app`: ramdisk 1 from the app's files, how it is run, who may enter and what it reaches.

The entry in the cache is whole: the packed ramdisk and what was learnt while it was made, so that a build that reuses
it need not read a byte of the app.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata, resources
from typing import Any

import msgspec
from enclavekit_core.errors import InputError
from enclavekit_core.runtime_config import SCHEMA_PATH, Schema

from enclavekit_rbuilds.app.accounts import Account, resolve_user
from enclavekit_rbuilds.app.archive import read_archive
from enclavekit_rbuilds.app.directory import read_directory
from enclavekit_rbuilds.app.image_config import ImageConfig, Overrides
from enclavekit_rbuilds.app.inodes import Content, Inode
from enclavekit_rbuilds.app.tree import AppTree, split_path
from enclavekit_rbuilds.app.unit import make_unit, prepare_tree
from enclavekit_rbuilds.base.cache import cached, key_of
from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.framework.closure import units
from enclavekit_rbuilds.image.ramdisk import RECIPE as PACKING
from enclavekit_rbuilds.image.ramdisk import AppFile, RamdiskFile, pack_app
from enclavekit_rbuilds.init_c.image import init_files
from enclavekit_rbuilds.kernel.sources import fit_compression
from enclavekit_rbuilds.manifest.attestation import File
from enclavekit_rbuilds.manifest.clients import Client, render_clients
from enclavekit_rbuilds.manifest.control import ControlGrant, render_control
from enclavekit_rbuilds.manifest.logs import PATH as INIT_PATH
from enclavekit_rbuilds.manifest.network import NetworkPlan
from enclavekit_rbuilds.plan.source import Source, hash_file
from enclavekit_rbuilds.plan.steps import Job, Product, Step

UNIT_PATH = b"service/app.service"
LISTENER_PATH = b"service/pipeline.service"
CLIENTS_PATH = b"etc/enclavekit/clients.yaml"
RUNTIME_CONFIG_UNIT_PATH = b"service/runtime-config.service"
RUNTIME_CONFIG_UNIT = b"""\
# Takes the values of this deployment from the parent, measures them into PCR16 and locks it.
Type = "oneshot"
ExecStart = ["/usr/bin/python3", "-I", "-m", "enclavekit_enclave_init.runtime_config"]
"""
GATEWAY_UNIT_PATH = b"service/initctl-gateway.service"
GATEWAY_UNIT = b"""\
# Lets those whom the list of clients grants it ask PID 1, over an attested channel.
ExecStart = ["/usr/bin/python3", "-I", "-m", "enclavekit_enclave_init.initctl.gateway"]
Restart = "always"
RestartSec = 1
"""
OWN_CODE = (  # package -> folders whose code decides the bytes of an app's ramdisk
    ("enclavekit_rbuilds", ("app", "image", "init_c", "manifest", "plan", "data/units")),
    ("enclavekit_eif", ("",)),
)


@dataclass(frozen=True, slots=True)
class AppRequest:
    """What decides ramdisk 1 beside the app's source."""

    arch: str
    compression: str
    overrides: tuple[Overrides, ...]
    clients: tuple[Client, ...]
    services: frozenset[str]
    network: NetworkPlan
    runtime_config: Schema = field(default_factory=dict)
    """What the values of a deployment may be; empty: it takes none."""
    attestation: tuple[File, ...] = ()
    """Files for the attestation server."""
    logs: bytes = b""
    """Of a file for PID 1; empty: none."""
    control: tuple[ControlGrant, ...] = ()
    """Of the same file."""
    keep_owners: bool = False
    """Of a directory: files keep the uid and gid that they have on disk."""
    init: str = "python"
    """Or `c`, which reads how the app is run from other files."""


class AppRamdisk(msgspec.Struct, frozen=True):
    """What the cache keeps of an app."""

    ramdisk: RamdiskFile
    inputs: tuple[Input, ...]
    notes: tuple[str, ...]
    """What the builder was told while it was made, and is told again when it is reused."""


class _Notes(Progress):
    """Passes everything on and remembers the notes."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress.stream, quiet=progress.quiet)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def app_step(request: AppRequest, progress: Progress) -> Step:
    """Return the step. Of the kernel it takes only what compression that can read, so no other change of it counts."""

    def make(job: Job) -> Product:
        source: Source = job.inputs["app-source"]
        fitting = replace(request, compression=fit_compression(job.inputs["kernel"], request.compression)[0])
        key = key_of([source.digest, *facts_of(fitting)])
        directory = cached("app", key, lambda work: _make_app(work, source, fitting, progress))
        with open(os.path.join(directory, "app.json"), "rb") as record:
            app = msgspec.json.decode(record.read(), type=AppRamdisk)
        packed = msgspec.structs.replace(app.ramdisk, path=os.path.join(directory, "ramdisk"))
        return Product(msgspec.structs.replace(app, ramdisk=packed), key)

    return Step("app", "app ramdisk", ("app-source", "kernel"), facts_of(request), make)


def facts_of(request: AppRequest) -> tuple[str, ...]:
    """Return everything that decides the ramdisk but its source, our own code included."""
    network = request.network
    settings: list[Any] = [[[name, getattr(item, name)] for name in Overrides.__slots__] for item in request.overrides]
    return (
        PACKING,
        request.arch,
        request.compression,
        "owners kept" if request.keep_owners else "",
        msgspec.json.encode(settings).decode(),
        render_clients(request.clients).decode(),
        " ".join(sorted(request.services)),
        msgspec.json.encode([network.units, _texts(network.files), _texts(network.app_files)]).decode(),
        msgspec.json.encode(request.runtime_config, order="sorted").decode(),
        msgspec.json.encode(request.attestation).decode(),
        request.logs.decode(),
        msgspec.json.encode(request.control).decode(),
        request.init,
        own_code_digest(),
        metadata.version("zstandard"),
    )


def own_code_digest() -> str:
    """Return a hash over our own modules that read, pack and write: changed code makes its own entries."""
    digest = hashlib.sha256()
    for package, folders in OWN_CODE:
        top = os.fspath(resources.files(package))  # type: ignore[call-overload]
        for folder in folders:
            place = os.path.join(top, folder)
            for name in sorted(os.listdir(place)):
                if name.endswith((".py", ".service")):
                    digest.update(f"{package}/{folder}/{name} {hash_file(os.path.join(place, name))}\n".encode())
    return digest.hexdigest()


def _make_app(work: str, source: Source, request: AppRequest, progress: Progress) -> None:
    notes = _Notes(progress)
    scratch = os.path.join(work, "scratch")
    os.mkdir(scratch)
    tree, config = _read_source(source, scratch, request, notes)
    # before anything of ours is added: what the app is, not what we make of it
    inputs = (Input("app", os.path.basename(source.name.rstrip("/")), "", *_digest_of(source, tree)),)
    for overrides in request.overrides:
        config = overrides.apply(config)
    account = resolve_user(tree, config.user)
    prepare_tree(tree, config, account)
    shared = tree.resolve((b"data",))
    if shared is not None and shared.children and request.init != "c":
        notes.note("what the image has in /data is not seen in the enclave: the shared /data is mounted there")
    files: Sequence[AppFile]
    if request.init == "c":
        files = init_files(tree, config, account)
    else:
        unit = make_unit(
            tree, config, account, takes_values=bool(request.runtime_config), has_control=bool(request.control)
        )
        files = app_files(unit, request, account, request.logs + render_control(resolve_grants(tree, request.control)))
    if request.network.app_files:
        add_files(tree, request.network.app_files, scratch)
    ramdisk = pack_app(tree, files, os.path.join(work, "ramdisk"), request.compression)
    with open(os.path.join(work, "app.json"), "wb") as out:
        out.write(msgspec.json.encode(AppRamdisk(ramdisk, inputs, tuple(notes.notes))))
    shutil.rmtree(scratch)


def _read_source(source: Source, scratch: str, request: AppRequest, progress: Progress) -> tuple[AppTree, ImageConfig]:
    if source.kind == "rootfs":
        return read_directory(source.path, keep_owners=request.keep_owners, progress=progress), ImageConfig()
    archive = source.path
    if source.image is not None:
        archive = os.path.join(scratch, "image.tar")
        source.image.save(archive)
    return read_archive(archive, scratch, request.arch, progress)


def _digest_of(source: Source, tree: AppTree) -> tuple[str, int, str]:
    """Return (SHA-256, size, where it came from) for the list of inputs: the same on every machine."""
    if source.kind == "rootfs":
        return tree_digest(tree), 0, "directory"
    if source.kind == "dockerfile":
        return source.digest.removeprefix("sha256:"), 0, "image digest"
    if os.path.isdir(source.path):  # an OCI layout, all of which its index names by hash
        return hash_file(os.path.join(source.path, "index.json")), 0, "OCI layout"
    return source.digest.removeprefix("sha256:"), os.stat(source.path).st_size, "archive"


def tree_digest(tree: AppTree) -> str:
    """Return the hash of a tree's canonical listing: names, modes, owners, devices, contents, targets, hard links."""
    digest = hashlib.sha256()
    linked = tree.link_counts()
    order: dict[int, int] = {}
    for node in tree.walk():
        inode = node.inode
        # equal for names of one file, on every machine
        first = order.setdefault(node.number, len(order)) if node.number in linked else -1
        content = inode.content
        what = _hash_content(content) if isinstance(content, Content) else content
        numbers = (
            len(node.path),
            first,
            inode.mode,
            inode.uid,
            inode.gid,
            *inode.rdev,
            inode.capability.hex() or 0,
            len(what),
        )
        digest.update(" ".join(map(str, numbers)).encode() + b" " + node.path + b" " + what + b"\n")
    return digest.hexdigest()


def _hash_content(content: Content) -> bytes:
    """Hash one file; only a directory's tree is hashed like this, where each content is a file of its own."""
    return hash_file(os.fsdecode(content.path)).encode() if content.size else b""


def add_files(tree: AppTree, files: Mapping[bytes, bytes], scratch: str) -> None:
    """Put files into the app's root; a C library may want nsswitch.conf to ask the resolver that one of them names."""
    wanted = dict(files)
    if tree.find((b"etc", b"nsswitch.conf")) is None:
        wanted[b"etc/nsswitch.conf"] = b"hosts: files dns\n"
    for number, (name, text) in enumerate(wanted.items()):
        path = os.path.join(os.fsencode(scratch), b"own-%d" % number)
        with open(path, "wb") as out:
            out.write(text)
        tree.place(split_path(name), Inode(stat.S_IFREG | 0o644, content=Content(path, 0, len(text))))


def _texts(files: Mapping[bytes, bytes]) -> dict[str, str]:
    return {path.decode(): content.decode() for path, content in files.items()}


def resolve_grants(tree: AppTree, grants: Sequence[ControlGrant]) -> list[tuple[int, ControlGrant]]:
    """Return each with the uid of its user. Raises InputError for one that is unknown, root or there twice."""
    found: dict[int, ControlGrant] = {}
    for grant in grants:
        uid = resolve_user(tree, grant.user).uid
        if uid == 0 or uid in found:
            reason = "root may ask for everything" if uid == 0 else "it is there twice"
            raise InputError("grant control to", grant.user, reason)
        found[uid] = grant
    return list(found.items())


def app_files(unit: str, request: AppRequest, account: Account, for_init: bytes) -> Sequence[AppFile]:
    """Return what ramdisk 1 holds beside the app's root; /data belongs to the app, which keeps its state there."""
    files = [
        AppFile(b"data", None, uid=account.uid, gid=account.gid),
        AppFile(UNIT_PATH, unit.encode()),
    ]
    if request.clients:
        files.append(AppFile(CLIENTS_PATH, render_clients(request.clients)))
    # nobody who may enter, no listener: a unit that fails would only fill the log
    if "pipeline" in request.services and not any(client.allow for client in request.clients):
        files.append(AppFile(LISTENER_PATH, (units()["pipeline.service"] + "ServiceEnable = false\n").encode()))
    if any(client.control for client in request.clients):
        files.append(AppFile(GATEWAY_UNIT_PATH, GATEWAY_UNIT))
    files += [AppFile(path.encode(), content) for path, content in request.attestation]
    if for_init:
        files.append(AppFile(INIT_PATH, for_init))
    if request.runtime_config:
        schema = msgspec.json.format(msgspec.json.encode(request.runtime_config, order="sorted"), indent=2)
        files.append(AppFile(SCHEMA_PATH.lstrip("/").encode(), schema + b"\n"))
        files.append(AppFile(RUNTIME_CONFIG_UNIT_PATH, RUNTIME_CONFIG_UNIT))
    files += [AppFile(path, content) for path, content in request.network.files.items()]
    files += [AppFile(f"service/{name}".encode(), text.encode()) for name, text in request.network.units.items()]
    return files
