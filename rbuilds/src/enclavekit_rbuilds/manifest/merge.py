# SPDX-License-Identifier: Apache-2.0
"""What to build, from the command line's flags and the manifest: a flag wins over the manifest's key.

Values are replaced one by one, lists as a whole (who may enter, what may be reached): a list that grew from two places
would admit what neither shows. Variables are added, as to an image's ENV.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex

import msgspec
from enclavekit_core.address import parse_listed_address
from enclavekit_core.errors import ConfigError, InputError

from enclavekit_rbuilds.app.image_config import Overrides, parse_environment
from enclavekit_rbuilds.build import BuildRequest
from enclavekit_rbuilds.evidence.write import EvidenceChoice
from enclavekit_rbuilds.framework.origin import parse_origin
from enclavekit_rbuilds.init_c.build import check_init
from enclavekit_rbuilds.lock import FILE_NAME as LOCK_NAME
from enclavekit_rbuilds.lock import load_lock
from enclavekit_rbuilds.manifest.attestation import read_client_ca, render_attestation
from enclavekit_rbuilds.manifest.clients import Client, check_client, load_client, parse_authorization
from enclavekit_rbuilds.manifest.logs import render_logs
from enclavekit_rbuilds.manifest.model import (
    FILE_NAME,
    SERVICES,
    AppSource,
    ClientEntry,
    EgressRule,
    IngressRule,
    KernelChoice,
    Manifest,
    Network,
    Resources,
    Signing,
    check_manifest,
    load_manifest,
)

FLAGS = "the command line"
SOURCES = ("dockerfile", "archive", "rootfs")
# what an entry says beside who it is and what it may do; the listener in the enclave judges by it
CLIENT_RULES = (
    "control",
    "sessions",
    "memory_max",
    "tasks_max",
    "cpu_quota",
    "commands",
    "read",
    "write",
    "user",
    "environment",
    "landlock",
    "seccomp",
    "forward",
    "reverse",
)


def merge_request(args: argparse.Namespace) -> BuildRequest:
    """Return the request. Raises ConfigError, InputError."""
    path = manifest_path(args)
    manifest = load_manifest(path)
    source = path or FLAGS
    app = _app(args, manifest, source)
    output, name = _output(args, manifest)
    flags = Overrides(
        entrypoint=parse_words("--entrypoint", args.entrypoint),
        cmd=parse_words("--cmd", args.cmd),
        environment=parse_environment(tuple(args.env), "--env"),
        user=args.user,
        working_directory=args.workdir,
        stop_signal=args.stop_signal,
    )
    return BuildRequest(
        output=output,
        dockerfile=app.dockerfile,
        context=app.context,
        archive=app.archive,
        rootfs=app.rootfs,
        engine=app.engine or "",
        build_args=_build_args(args, app),
        target=args.target or app.target or "",
        keep_owners=args.keep_owners,
        no_engine_cache=args.no_engine_cache,
        init=check_init(args.init),
        kernel=_kernel(args, manifest),
        cmdline=args.cmdline,
        framework_rootfs=args.framework_rootfs,
        origin=parse_origin(args.framework_from) if args.framework_from else None,
        lock=load_lock(args.lock or LOCK_NAME) if args.locked or args.lock else None,
        clients=_clients(args, manifest, source),
        name=name,
        version=args.version or manifest.version or "1.0",
        overrides=(manifest.overrides(), flags),
        services=_services(args, manifest),
        network=_network(args, manifest),
        runtime_config=manifest.runtime_config,
        attestation=render_attestation(manifest.attestation, _client_ca(manifest)),
        proxied_port=manifest.attestation.proxied_port,
        logs=render_logs(manifest.logs),
        control=tuple(manifest.control.allow),
        resources=_resources(args, manifest),
        signing=_signing(args, manifest),
        arch=args.arch,
        compression=args.compression,
        source=source,
        evidence=None if args.no_evidence else EvidenceChoice(args.builder_id, args.with_time),
    )


def manifest_path(args: argparse.Namespace) -> str | None:
    """Return the manifest to read: the one named, or the one in this directory if no flag names a source.

    Who names a source gets what the flags say and nothing that happens to lie around.
    """
    if args.config is not None or any(getattr(args, name) is not None for name in SOURCES):
        return args.config if args.config is None else str(args.config)
    if os.path.exists(FILE_NAME):
        return FILE_NAME
    reason = f"it names no source (--dockerfile, --archive, --rootfs), and there is no {FILE_NAME} here"
    raise ConfigError(FLAGS, "", reason)


def parse_words(flag: str, text: str | None) -> tuple[str, ...] | None:
    """Split a command given on the command line: a JSON list as it is, else words as a shell splits them."""
    if text is None:
        return None
    try:
        words = json.loads(text) if text.lstrip().startswith("[") else shlex.split(text)
    except ValueError as exc:
        raise InputError("use", flag, f"it is neither words nor a JSON list: {exc}") from exc
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError("use", flag, "it is not a list of strings")
    return tuple(words)


def parse_egress(text: str) -> EgressRule:
    """Return the rule that `HOST:PORT` or `HOST:FIRST-LAST` names, an IPv6 address in brackets. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    first, dash, last = port.partition("-")
    number = _number("--egress", text, first)
    ports = f"{number}-{_number('--egress', text, last)}" if dash else number
    return EgressRule(host=host.removeprefix("[").removesuffix("]"), port=ports)


def parse_ingress(text: str) -> IngressRule:
    """Return the rule that `PORT[:VSOCK_PORT]` names. Raises ConfigError."""
    port, colon, vsock = text.partition(":")
    return IngressRule(
        port=_number("--ingress", text, port),
        vsock_port=_number("--ingress", text, vsock, 0xFFFFFFFE) if colon else None,
    )


def _number(flag: str, text: str, digits: str, limit: int = 65535) -> int:
    if not (digits.isascii() and digits.isdigit()) or not 1 <= int(digits) <= limit:
        raise ConfigError(f"{flag} {text}", "", f"the port {digits!r} is not a number from 1 to {limit}")
    return int(digits)


def _app(args: argparse.Namespace, manifest: Manifest, source: str) -> AppSource:
    given = {name: getattr(args, name) for name in SOURCES if getattr(args, name) is not None}
    more = {name: getattr(args, name) for name in ("context", "engine") if getattr(args, name) is not None}
    if given:
        app = AppSource(**given)
    elif manifest.app is not None:
        app = manifest.app
    else:
        raise ConfigError(source, "app", "it names no source, and neither does a flag")
    if app.dockerfile is None:
        return app  # a context or an engine concerns nobody then, as ever
    return msgspec.structs.replace(app, **more)


def _build_args(args: argparse.Namespace, app: AppSource) -> tuple[str, ...]:
    """Return the Dockerfile's arguments. Flags for another kind of source are refused, not dropped in silence."""
    if app.dockerfile is None and (args.build_arg or args.target is not None):
        raise ConfigError(FLAGS, "", "--build-arg and --target belong to a Dockerfile")
    if app.rootfs is None and args.keep_owners:
        raise ConfigError(FLAGS, "", "--keep-owners belongs to --rootfs: images have their owners")
    listed = [f"{name}={value}" for name, value in app.build_args.items()]
    return (*listed, *args.build_arg)  # an engine takes the last of one name


def _output(args: argparse.Namespace, manifest: Manifest) -> tuple[str, str | None]:
    name = args.name or manifest.name
    if args.output is not None:
        return str(args.output), name
    if name is None:
        raise ConfigError(FLAGS, "", "it has neither --output nor a name to call the image by")
    if "/" in name or name.startswith("."):
        raise ConfigError(FLAGS, "", f"the name {name!r} cannot be a file's: give --output")
    return f"{name}.eif", name


def _clients(args: argparse.Namespace, manifest: Manifest, source: str) -> tuple[Client, ...]:
    if args.authorize:
        return tuple(parse_authorization(text) for text in args.authorize)
    return tuple(_client(entry, source) for entry in manifest.clients)


def _client(entry: ClientEntry, source: str) -> Client:
    for text in (*(entry.forward or ()), *(entry.reverse or ())):
        parse_listed_address(text, source)
    allow = [entry.allow] if isinstance(entry.allow, str) else entry.allow
    if not allow and not entry.control:
        raise InputError("authorize", entry.certificate, "it may do nothing")
    client = load_client(entry.certificate, allow, entry.name)
    rules = {name: getattr(entry, name) for name in CLIENT_RULES}
    return check_client(msgspec.structs.replace(client, **rules), source)


def _client_ca(manifest: Manifest) -> str | None:
    path = manifest.attestation.client_ca
    return None if path is None else read_client_ca(path)


def _services(args: argparse.Namespace, manifest: Manifest) -> frozenset[str]:
    if args.services is None and args.init == "c" and manifest.services is None:
        return frozenset()
    if args.services is None:
        return frozenset(SERVICES if manifest.services is None else manifest.services)
    names = [] if args.services == "none" else [name.strip() for name in args.services.split(",")]
    if unknown := [name for name in names if name not in SERVICES]:
        raise ConfigError("--services", "", f"{unknown[0]!r} is none of {', '.join(SERVICES)}")
    return frozenset(names)


def _network(args: argparse.Namespace, manifest: Manifest) -> Network:
    network = manifest.network
    changes: dict[str, object] = {}
    if args.egress:
        changes["egress"] = [parse_egress(text) for text in args.egress]
    if args.ingress:
        changes["ingress"] = [parse_ingress(text) for text in args.ingress]
    if args.network is not None or changes:
        changes["mode"] = args.network  # the manifest's mode is about the manifest's rules
    return msgspec.structs.replace(network, **changes)


def _resources(args: argparse.Namespace, manifest: Manifest) -> Resources:
    given = {"memory_mib": args.memory, "cpus": args.cpus, "cid": args.cid}
    document = msgspec.to_builtins(manifest.resources) | {k: v for k, v in given.items() if v is not None}
    try:
        return msgspec.convert(document, Resources)
    except msgspec.ValidationError as exc:
        reason, _, key = str(exc).partition(" - at `$.")
        raise ConfigError(FLAGS, key.rstrip("`"), reason[:1].lower() + reason[1:]) from exc


def _kernel(args: argparse.Namespace, manifest: Manifest) -> KernelChoice:
    choice = manifest.kernel
    if args.kernel is not None or args.kernel_source is not None:
        choice = KernelChoice(source=args.kernel_source or "file", path=args.kernel)
    if args.kernel_version is not None:
        choice = msgspec.structs.replace(choice, version=args.kernel_version)
    if args.kernel_sha256 is not None:
        choice = msgspec.structs.replace(choice, sha256=args.kernel_sha256.lower())
    return check_manifest(Manifest(kernel=choice), FLAGS).kernel


def _signing(args: argparse.Namespace, manifest: Manifest) -> Signing | None:
    if args.signing_key is None and args.kms_key is None:
        if args.signing_certificate is None:
            return manifest.signing
        if manifest.signing is None:
            raise ConfigError("--signing-certificate", "", "there is no --signing-key and no --kms-key")
        return msgspec.structs.replace(manifest.signing, certificate=args.signing_certificate)
    certificate = args.signing_certificate or (manifest.signing and manifest.signing.certificate)
    if not certificate:
        raise ConfigError("--signing-key" if args.signing_key else "--kms-key", "", "there is no --signing-certificate")
    signing = Signing(certificate=certificate, key=args.signing_key, kms_key=args.kms_key)
    check_manifest(Manifest(signing=signing), FLAGS)
    return signing
