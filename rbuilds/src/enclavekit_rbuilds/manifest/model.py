# SPDX-License-Identifier: Apache-2.0
"""`enclave.yaml`, the manifest: everything a builder says about an enclave. Strict; flags override it.

Paths in it are relative to the file, so that an app's folder can be moved as a whole. The JSON schema that
`rbuilds schema` prints is made from these types.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

import msgspec
from enclavekit_core.config import StrictConfig, load_config
from enclavekit_core.egress_policy import MAX_RULES
from enclavekit_core.errors import ConfigError
from enclavekit_core.runtime_config import Setting, check_schema
from msgspec import Meta

from enclavekit_rbuilds.app.image_config import Overrides
from enclavekit_rbuilds.manifest.attestation import Attestation, check_attestation
from enclavekit_rbuilds.manifest.clients import USUAL_VERBS, Control, Fence
from enclavekit_rbuilds.manifest.control import ControlSocket
from enclavekit_rbuilds.manifest.logs import Logs, check_logs

FILE_NAME = "enclave.yaml"
SERVICES = ("attestation", "files", "pipeline")
MAX_INGRESS = 256  # each is a socket in the enclave and a process of the parent

Service = Literal["attestation", "files", "pipeline"]
Verb = Literal["exec", "cp-in", "cp-out", "shell", "ps", "kill", "dial", "listen-remote"]
Mode = Literal["none", "forward", "reverse", "both"]
Protocol = Literal["tcp", "udp"]
TcpPort = Annotated[int, Meta(ge=1, le=65535)]
# ranges are checked with the policy: a pattern in this union crashes msgspec 0.22 when the type is freed
Ports = TcpPort | str | Annotated[list[TcpPort | str], Meta(min_length=1)]
VsockPort = Annotated[int, Meta(ge=1, le=0xFFFFFFFE)]
Text = Annotated[str, Meta(min_length=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class AppSource(StrictConfig, frozen=True):
    """Where the app comes from: exactly one of dockerfile, archive and rootfs."""

    dockerfile: Annotated[Text | None, Meta(description="Built by a container engine.")] = None
    archive: Annotated[Text | None, Meta(description="OCI layout in a tar file, or docker-save archive.")] = None
    rootfs: Annotated[Text | None, Meta(description="A directory; in the image all of it belongs to root.")] = None
    context: Annotated[Text | None, Meta(description="What COPY sees; default: the Dockerfile's directory.")] = None
    engine: Annotated[
        Literal["docker", "podman", "buildah"] | None, Meta(description="Default: the first that works.")
    ] = None
    build_args: Annotated[dict[str, str], Meta(description="ARG values of the Dockerfile.")] = {}
    target: Annotated[Text | None, Meta(description="The stage to build; default: the last.")] = None


class EgressRule(StrictConfig, frozen=True):
    """What the app may reach. A connection by name has to agree with the DNS answer and show the name itself."""

    host: Annotated[
        Text,
        Meta(description="Exact name, *.NAME for every name below NAME, IP address, or range such as 192.0.2.0/24."),
    ]
    port: Annotated[Ports, Meta(description="Number, range such as 8000-8010, or a list of both.")]
    protocol: Annotated[Protocol, Meta(description="udp: a name needs QUIC, which shows it, or absent_name.")] = "tcp"
    private_address: Annotated[
        bool, Meta(description="The name may lead to private addresses, else such an answer is not believed.")
    ] = False
    absent_name: Annotated[
        bool, Meta(description="Connections need not show the name: data bases, and where the server speaks first.")
    ] = False
    encrypted_name: Annotated[
        bool, Meta(description="The TLS ClientHello may be encrypted, so that the name cannot be seen.")
    ] = False


class DenyRule(StrictConfig, frozen=True):
    """What the app may not reach although an egress rule covers it."""

    host: Annotated[Text, Meta(description="As in egress.")]
    port: Annotated[Ports | None, Meta(description="Default: all.")] = None
    protocol: Annotated[Protocol | None, Meta(description="Default: both.")] = None


class IngressRule(StrictConfig, frozen=True):
    """One TCP port of the app that the parent may reach."""

    port: Annotated[TcpPort, Meta(description="Where the app listens, on 127.0.0.1.")]
    vsock_port: Annotated[VsockPort | None, Meta(description="Where the parent connects; default: the port.")] = None


class Network(StrictConfig, frozen=True):
    """What the app reaches and who reaches it. Nothing that is not listed."""

    mode: Annotated[Mode | None, Meta(description="Must fit what is listed; default: what follows from it.")] = None
    egress: Annotated[list[EgressRule], Meta(max_length=MAX_RULES)] = []
    deny: Annotated[list[DenyRule], Meta(max_length=MAX_RULES, description="Wins over egress.")] = []
    ingress: Annotated[list[IngressRule], Meta(max_length=MAX_INGRESS)] = []
    ipv6: Annotated[
        bool, Meta(description="The app can reach IPv6 addresses; only where the parent can, or it fails late.")
    ] = False
    rules: Annotated[
        Literal["nft", "iptables"] | None,
        Meta(description="What puts the egress into the kernel; default: what the kernel of the image has."),
    ] = None
    insecure_learn: Annotated[
        bool, Meta(description="Allow everything, and write the rules that it took: for finding them, not for use.")
    ] = False


class ClientEntry(StrictConfig, frozen=True):
    """Somebody who may enter the enclave."""

    certificate: Annotated[Text, Meta(description="PEM file.")]
    allow: Annotated[
        list[Verb] | Literal["all"],
        Meta(description="What they may do in the app's root; all: everything, in the framework's root as well."),
    ] = msgspec.field(default_factory=lambda: list(USUAL_VERBS))  # type: ignore[arg-type]  # they are Verbs
    sessions: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="Connections at once; default: any number.")
    ] = None
    memory_max: Annotated[
        Annotated[int, Meta(ge=1)] | Text | None,
        Meta(description="Of all that they run, together: bytes, or a number with K, M, G or T; default: no limit."),
    ] = None
    tasks_max: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="Processes and threads of those; default: no limit.")
    ] = None
    cpu_quota: Annotated[
        Text | None, Meta(description='Of one processor, for those, such as "50%"; default: no limit.')
    ] = None
    commands: Annotated[
        list[list[Text]] | None,
        Meta(
            description="What exec may run: word by word, shell patterns, `...` last for any more; default: anything."
        ),
    ] = None
    read: Annotated[list[Text] | None, Meta(description="Below which cp reads; default: anywhere.")] = None
    write: Annotated[list[Text] | None, Meta(description="Below which cp writes; default: anywhere.")] = None
    user: Annotated[Text | None, Meta(description="Whom commands run as: name or uid[:gid]; default: root.")] = None
    environment: Annotated[
        list[Text] | None, Meta(description="Variables that -e may set, shell patterns; default: any.")
    ] = None
    landlock: Annotated[Fence | None, Meta(description="Paths that commands reach; default: all.")] = None
    seccomp: Annotated[
        Literal["default", "no-network"] | None, Meta(description="System calls that commands may not make.")
    ] = None
    forward: Annotated[
        list[Text] | None,
        Meta(description="What dial may connect to: tcp://HOST:PORT, unix:///PATH; default: anything."),
    ] = None
    reverse: Annotated[
        list[Text] | None,
        Meta(description="What listen-remote may listen on: tcp://HOST:PORT, unix:///PATH; default: anything."),
    ] = None
    control: Annotated[
        list[Control],
        Meta(description="What initctl may ask PID 1 for them; if anybody may, its gateway listens; default: nothing."),
    ] = []
    name: Annotated[Text | None, Meta(description="Default: the file's name without its suffix.")] = None


class Resources(StrictConfig, frozen=True):
    """What `rbuilds run` asks for; not measured."""

    memory_mib: Annotated[int, Meta(ge=64)] | None = None
    cpus: Annotated[int, Meta(ge=1)] | None = None
    cid: Annotated[int, Meta(ge=4, le=0xFFFFFFFE)] | None = None


class KernelChoice(StrictConfig, frozen=True):
    """Which kernel: Debian's (for the emulator only), the host's Nitro blobs, one made by us, or a file."""

    source: Literal["debian", "blobs", "made", "file"] = "debian"
    path: Annotated[Text | None, Meta(description="The file, or where the blobs or the made kernel are.")] = None
    version: Annotated[
        Text | None,
        Meta(description="Debian's package of this version; the build stops if the kernel is of another version."),
    ] = None
    sha256: Annotated[Sha256 | None, Meta(description="The build stops if the kernel is another one.")] = None


class Signing(StrictConfig, frozen=True):
    """Who signs the image: a PEM key or a key in AWS KMS, and its certificate. PCR8 names the certificate."""

    certificate: Annotated[Text, Meta(description="PEM file.")]
    key: Annotated[Text | None, Meta(description="PEM file.")] = None
    kms_key: Annotated[Text | None, Meta(description="ARN.")] = None


class Manifest(StrictConfig, frozen=True):
    """The whole file; every key may be left out."""

    name: Annotated[Text | None, Meta(description="ImageName; the image is NAME.eif unless --output says more.")] = None
    version: Annotated[Text | None, Meta(description="ImageVersion; default: 1.0.")] = None
    app: AppSource | None = None
    entrypoint: Annotated[list[str] | None, Meta(description="Instead of ENTRYPOINT; discards CMD.")] = None
    cmd: Annotated[list[str] | None, Meta(description="Instead of CMD.")] = None
    env: Annotated[dict[str, str], Meta(description="Added to ENV.")] = {}
    user: Annotated[str | None, Meta(description="name, uid, name:group or uid:gid; instead of USER.")] = None
    workdir: Annotated[str | None, Meta(description="Instead of WORKDIR.")] = None
    stop_signal: Annotated[str | None, Meta(description="Instead of STOPSIGNAL.")] = None
    services: Annotated[
        list[Service] | None, Meta(description="What the framework runs beside the app; default: all three.")
    ] = None
    network: Network = Network()
    clients: list[ClientEntry] = []
    attestation: Attestation = Attestation()
    logs: Logs = Logs()
    control: ControlSocket = ControlSocket()
    resources: Resources = Resources()
    runtime_config: Annotated[
        dict[str, Setting],
        Meta(
            description="Values that differ per deployment: what each may be. Measured into PCR16 when they are given."
        ),
    ] = {}
    kernel: KernelChoice = KernelChoice()
    signing: Signing | None = None

    def overrides(self) -> Overrides:
        """Return what of it concerns how the app is run."""
        return Overrides(
            entrypoint=None if self.entrypoint is None else tuple(self.entrypoint),
            cmd=None if self.cmd is None else tuple(self.cmd),
            environment=dict(self.env),
            user=self.user,
            working_directory=self.workdir,
            stop_signal=self.stop_signal,
        )


def load_manifest(path: str | None) -> Manifest:
    """Return the file's content with its paths made absolute, or the defaults without a file. Raises ConfigError."""
    if path is None:
        return Manifest()
    return resolve_paths(check_manifest(load_config(Manifest, path), path), os.path.dirname(os.path.abspath(path)))


def check_manifest(manifest: Manifest, source: str) -> Manifest:
    """Check what the types cannot say. Raises ConfigError."""
    app, signing, kernel = manifest.app, manifest.signing, manifest.kernel
    if app is not None:
        named = [name for name in ("dockerfile", "archive", "rootfs") if getattr(app, name) is not None]
        if len(named) != 1:
            raise ConfigError(source, "app", "it must have exactly one of dockerfile, archive and rootfs")
        if named != ["dockerfile"] and (app.context or app.engine or app.build_args or app.target):
            raise ConfigError(source, "app", "context, engine, build_args and target belong to a dockerfile")
    if signing is not None and (signing.key is None) == (signing.kms_key is None):
        raise ConfigError(source, "signing", "it must have exactly one of key and kms_key")
    if kernel.source == "file" and kernel.path is None:
        raise ConfigError(source, "kernel", "source: file needs a path")
    if kernel.source == "debian" and kernel.path is not None:
        raise ConfigError(source, "kernel", "a path needs source: file, blobs or made")
    check_attestation(manifest.attestation, source)
    check_logs(manifest.logs, source)
    check_schema(manifest.runtime_config, source, "runtime_config.")
    return manifest


def resolve_paths(manifest: Manifest, folder: str) -> Manifest:
    """Return `manifest` with every path absolute; they are relative to `folder`."""

    def absolute(value: Any, *names: str) -> Any:
        changes = {name: os.path.join(folder, getattr(value, name)) for name in names if getattr(value, name)}
        return msgspec.structs.replace(value, **changes)

    return msgspec.structs.replace(
        manifest,
        app=manifest.app and absolute(manifest.app, "dockerfile", "archive", "rootfs", "context"),
        clients=[absolute(client, "certificate") for client in manifest.clients],
        attestation=absolute(manifest.attestation, "client_ca"),
        kernel=absolute(manifest.kernel, "path"),
        signing=manifest.signing and absolute(manifest.signing, "key", "certificate"),
    )
