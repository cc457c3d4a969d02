# SPDX-License-Identifier: Apache-2.0
"""The manifest: what it refuses, how flags override it, the file that `init` writes, and the published schema."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
from pathlib import Path

import pytest
import yaml
from enclavekit_core.errors import ConfigError, EnclavekitError, InputError
from enclavekit_rbuilds.build import BuildRequest
from enclavekit_rbuilds.cli import build_parser, main
from enclavekit_rbuilds.commands.build import request_from_args
from enclavekit_rbuilds.manifest.clients import Fence
from enclavekit_rbuilds.manifest.model import Manifest, load_manifest
from enclavekit_rbuilds.manifest.schema import render_schema

PUBLISHED = Path(__file__).parents[2] / "docs/reference/enclave.schema.json"
FULL = """
name: shop
version: "7"
app: {dockerfile: Dockerfile, context: ., engine: buildah, build_args: {A: "1"}, target: last}
entrypoint: [serve]
cmd: [--verbose]
env: {A: "1", B: "2"}
user: web
workdir: /srv
stop_signal: SIGINT
services: [attestation, files, pipeline]
network:
  mode: both
  egress: [{host: api.example.com, port: 443}]
  ingress: [{port: 8080, vsock_port: 18080}]
clients:
  - {certificate: alice.crt, allow: all, name: ops, commands: [[ls, "..."]], read: [/data], write: [], user: app,
     environment: [LANG], landlock: {read: [/]}, seccomp: no-network,
     memory_max: 512M, tasks_max: 100, cpu_quota: 50%%, forward: ["tcp://127.0.0.1:8443"], reverse: []}
attestation:
  {roots: [/data, /models], vrf_cipher_suite: ECVRF-SECP256K1-SHA256-TAI, client_ca: alice.crt, proxied_port: 8444}
resources: {memory_mib: 2048, cpus: 4, cid: 16}
logs:
  to_parent: all
  stream_port: 9100
  redact: ["pw=[a-z]+"]
control: {allow: [{user: web, permissions: [status, logs]}]}
runtime_config: {REGION: {type: string, default: eu-west-1}}
kernel: {source: file, path: bzImage, sha256: %s}
signing: {key: signing.key, certificate: signing.crt}
""" % ("ab" * 32)


@pytest.fixture
def folder(tmp_path: Path, certificate, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of an app, that is not where the command runs."""
    certificate("alice")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "enclave.yaml").write_text(FULL)
    return tmp_path


def request(*words: object) -> BuildRequest:
    args: argparse.Namespace = build_parser().parse_args(["build", *map(str, words)])
    return request_from_args(args)


def test_every_key_arrives_with_paths_below_the_files_own_directory(folder: Path) -> None:
    built = request("--config", folder / "enclave.yaml")
    assert (built.output, built.name, built.version) == ("shop.eif", "shop", "7")
    assert (built.dockerfile, built.engine) == (str(folder / "Dockerfile"), "buildah")
    assert (built.build_args, built.target) == (("A=1",), "last")
    other = request("--config", folder / "enclave.yaml", "--build-arg", "B=x=y", "--target", "first")
    assert (other.build_args, other.target) == (("A=1", "B=x=y"), "first")
    assert built.context == os.path.join(folder, ".") and built.source == str(folder / "enclave.yaml")
    assert built.services == {"attestation", "files", "pipeline"}
    assert [(rule.host, rule.port) for rule in built.network.egress] == [("api.example.com", 443)]
    assert [(rule.port, rule.vsock_port) for rule in built.network.ingress] == [(8080, 18080)]
    assert [(one.name, one.system) for one in built.clients] == [("ops", True)]
    (ops,) = built.clients
    assert (ops.commands, ops.read, ops.write, ops.user) == ([["ls", "..."]], ["/data"], [], "app")
    assert (ops.environment, ops.landlock, ops.seccomp) == (["LANG"], Fence(read=["/"]), "no-network")
    assert (ops.memory_max, ops.tasks_max, ops.cpu_quota) == ("512M", 100, "50%")
    assert (ops.forward, ops.reverse) == (["tcp://127.0.0.1:8443"], [])
    assert (built.resources.memory_mib, built.resources.cpus, built.resources.cid) == (2048, 4, 16)
    settings = json.loads(dict(built.attestation)["etc/enclavekit/ra-web-srv.yaml"])
    assert settings == {
        "roots": ["/data", "/models"],
        "vrf_cipher_suite": "ECVRF-SECP256K1-SHA256-TAI",
        "client_ca": "/etc/enclavekit/ra-client-ca.pem",
        "proxied_listen": "tcp://127.0.0.1:8444",
    }
    assert dict(built.attestation)["etc/enclavekit/ra-client-ca.pem"] == (folder / "alice.crt").read_bytes()
    assert [(name, one.default) for name, one in built.runtime_config.items()] == [("REGION", "eu-west-1")]
    assert (built.kernel.source, built.kernel.path) == ("file", str(folder / "bzImage"))
    assert built.signing is not None and built.signing.certificate == str(folder / "signing.crt")
    assert built.overrides[0].entrypoint == ("serve",) and built.overrides[0].stop_signal == "SIGINT"


def test_flags_win(folder: Path, certificate) -> None:
    certificate("bob")
    built = request(
        *("--config", folder / "enclave.yaml", "--rootfs", "root", "--output", "x.eif", "--version", "8"),
        *("--authorize", folder / "bob.crt:exec", "--services", "pipeline", "--egress", "[2001:db8::1]:8443"),
        *("--ingress", "9090", "--memory", "512", "--kernel", "other", "--env", "B=3"),
        *("--kms-key", "arn:aws:kms:eu-west-1:1:key/2", "--signing-certificate", "other.crt"),
    )
    assert (built.rootfs, built.dockerfile, built.context, built.output) == ("root", None, None, "x.eif")
    assert [(one.name, one.allow) for one in built.clients] == [("bob", ["exec"])]
    assert built.services == {"pipeline"}
    assert [(rule.host, rule.port) for rule in built.network.egress] == [("2001:db8::1", 8443)]
    assert [(rule.port, rule.vsock_port) for rule in built.network.ingress] == [(9090, None)]
    assert built.network.mode is None
    assert (built.resources.memory_mib, built.resources.cpus) == (512, 4)
    assert (built.kernel.path, built.kernel.sha256) == ("other", None)
    assert built.signing is not None and (built.signing.key, built.signing.certificate) == (None, "other.crt")
    assert [one.environment for one in built.overrides] == [{"A": "1", "B": "2"}, {"B": "3"}]


def test_no_services_at_all(folder: Path) -> None:
    assert request("--rootfs", "root", "-o", "x", "--services", "none").services == frozenset()


def test_the_manifest_here_counts_only_if_no_source_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert request().version == "7"
    assert request("--version", "9").overrides[0].user == "web"
    assert request("--rootfs", "root", "-o", "x.eif").version == "1.0"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("nmae: x", "nmae"),
        ("app: {rootfs: x, archive: y}", "app: it must have exactly one of dockerfile, archive and rootfs"),
        ("app: {}", "exactly one"),
        ("app: {rootfs: x, engine: docker}", "belong to a dockerfile"),
        ("app: {dockerfile: x, engine: lxc}", "app.engine"),
        ("services: [nats]", "services"),
        ("network: {egress: [{host: a}]}", "port"),
        ("network: {egress: [{host: a, port: 0}]}", "network.egress"),
        ("network: {mode: bridge}", "network.mode"),
        ("network: {ingress: [{port: 1, vsock_port: 4294967295}]}", "network.ingress"),
        ("clients: [{certificate: a.crt, allow: [root]}]", "clients"),
        ("clients: [{allow: all}]", "certificate"),
        ("resources: {memory_mib: 1 GiB}", "resources.memory_mib"),
        ("resources: {cid: 3}", "resources.cid"),
        ("kernel: {source: file}", "needs a path"),
        ("kernel: {source: debian, path: x}", "kernel"),
        ("kernel: {source: made, sha256: abc}", "kernel.sha256"),
        ("signing: {certificate: x}", "exactly one of key and kms_key"),
        ("signing: {certificate: x, key: y, kms_key: z}", "exactly one of key and kms_key"),
        ("signing: {key: y}", "certificate"),
        ("attestation: {roots: []}", "attestation.roots"),
        ("attestation: {roots: [data]}", "attestation.roots"),
        ("attestation: {vrf_cipher_suite: SECT163K1_SHA256_TAI}", "attestation.vrf_cipher_suite"),
        ("attestation: {proxied_port: 0}", "attestation.proxied_port"),
        ("name: ''", "name"),
        ("a: [", "line"),
    ],
)
def test_wrong_manifests_are_one_line_with_the_key(folder: Path, capsys, change: str, reason: str) -> None:
    (folder / "enclave.yaml").write_text(change + "\n")
    before = sorted(folder.rglob("*"))
    assert main(["build", "--quiet", "--config", str(folder / "enclave.yaml"), "--rootfs", ".", "-o", "x.eif"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"cannot use {folder}/enclave.yaml" in lines[0] and reason in lines[0]
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: x\nnmae: y\n", 2),
        ("network:\n  egress:\n    - {host: a, port: 1}\n    - {host: b,\n       port: 0}\n", 5),
        ("network:\n  ingress:\n    - port: 1\n      vsock: 2\n", 4),
        ("name: x\nclients:\n  - allow: all\n", 3),
        ("name: x\nversion: 1.0\n", 2),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "enclave.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"\(line {line}\)$"):
        load_manifest(str(tmp_path / "enclave.yaml"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "names no source"),
        (["--config", "../enclave.yaml", "--signing-key", "k"], None),
        (["--rootfs", "x"], "neither --output nor a name"),
        (["--rootfs", "x", "--name", "a/b"], "cannot be a file's"),
        (["--rootfs", "x", "-o", "x", "--signing-key", "k"], "no --signing-certificate"),
        (["--rootfs", "x", "-o", "x", "--signing-certificate", "c"], "no --signing-key and no --kms-key"),
        (["--rootfs", "x", "-o", "x", "--signing-key", "k", "--kms-key", "a", "--signing-certificate", "c"], "exactly"),
        (["--rootfs", "x", "-o", "x", "--egress", "host"], "--egress host"),
        (["--rootfs", "x", "-o", "x", "--egress", "host:99999"], "--egress host:99999"),
        (["--rootfs", "x", "-o", "x", "--ingress", "80:"], "--ingress 80:"),
        (["--rootfs", "x", "-o", "x", "--services", "nats"], "--services"),
        (["--rootfs", "x", "-o", "x", "--cid", "3"], "cid"),
        (["--rootfs", "x", "-o", "x", "--kernel-source", "file"], "needs a path"),
    ],
)
def test_wrong_flags_are_one_line(folder: Path, words: list[str], reason: str | None) -> None:
    if reason is None:
        assert request(*words).signing is not None
        return
    with pytest.raises(EnclavekitError, match=reason) as caught:
        request(*words)
    assert caught.value.exit_code == 2 and str(caught.value).startswith("cannot use ")


@pytest.mark.parametrize("text", ["8443", "tcp://h:99999", "vsock://3:1", "unix:///a/../b"])
def test_forward_that_the_listener_would_refuse_is_refused_at_build_time(folder: Path, text: str) -> None:
    manifest = FULL.replace("tcp://127.0.0.1:8443", text)
    (folder / "enclave.yaml").write_text(manifest)
    with pytest.raises(ConfigError):
        request("--config", folder / "enclave.yaml")


def test_clients_need_somebody_who_lets_them_in(folder: Path, capsys) -> None:
    words = ["build", "-q", "--config", str(folder / "enclave.yaml"), "--rootfs", ".", "--services", "attestation"]
    assert main(words) == 2
    assert "without pipeline nobody can enter" in capsys.readouterr().err


def test_what_init_writes_loads_builds_and_is_never_overwritten(
    app: Path, framework: Path, kernel: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "My App"
    home.mkdir()
    app.rename(home / "rootfs")
    assert main(["init", str(home)]) == 0
    written = (home / "enclave.yaml").read_text()
    assert load_manifest(str(home / "enclave.yaml")).name == "my-app"
    assert main(["init", str(home)]) == 2
    assert (home / "enclave.yaml").read_text() == written
    monkeypatch.chdir(home)
    assert main(["build", "--quiet", "--framework-rootfs", str(framework), "--kernel", str(kernel)]) == 0
    assert (home / "my-app.eif").exists()
    # what is commented out is right as well
    lines = [
        line.removeprefix("# ") if ":" in line or line.startswith("#   ") else line for line in written.split("\n")
    ]
    start = next(i for i, line in enumerate(lines) if line.startswith("name:"))
    loud = "\n".join(line for line in lines[start:] if not line.startswith("#") and is_yaml_line(line))
    (home / "enclave.yaml").write_text(loud)
    everything = load_manifest(str(home / "enclave.yaml"))
    assert everything.network.egress and everything.clients and everything.signing and everything.user == "app"


def is_yaml_line(line: str) -> bool:
    key = line.strip().removeprefix("- ").partition(":")[0]
    return (bool(key) and key.isidentifier()) or line.strip().startswith("- {")


def test_init_beside_a_dockerfile_names_it(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    assert main(["init", str(tmp_path), "--name", 'it\'s: "odd"']) == 0
    manifest = load_manifest(str(tmp_path / "enclave.yaml"))
    assert manifest.app is not None and manifest.app.dockerfile == str(tmp_path / "Dockerfile")
    assert manifest.name == 'it\'s: "odd"'


def test_published_schema_is_that_of_the_types(capsys) -> None:
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == render_schema()
    assert PUBLISHED.read_text() == render_schema(), "run: rbuilds schema > docs/reference/enclave.schema.json"


def test_schema_knows_every_key_and_refuses_others() -> None:
    schema = json.loads(render_schema())
    manifest = schema["$defs"]["Manifest"]
    assert set(manifest["properties"]) == set(Manifest.__struct_fields__)
    assert all(d.get("additionalProperties") is False for d in schema["$defs"].values())
    assert set(yaml.safe_load(FULL)) == set(manifest["properties"])


@pytest.mark.parametrize("fits", [True, False])
def test_a_kernel_that_is_named_by_hash_is_that_kernel(
    app: Path, framework: Path, kernel: Path, tmp_path: Path, capsys, fits: bool
) -> None:
    digest = hashlib.sha256(kernel.read_bytes()).hexdigest() if fits else "00" * 32
    text = f"app: {{rootfs: {app}}}\ncmd: [serve]\nkernel: {{source: file, path: {kernel}, sha256: '{digest}'}}\n"
    (tmp_path / "enclave.yaml").write_text(text)
    words = ["--config", tmp_path / "enclave.yaml", "--framework-rootfs", framework, "-o", tmp_path / "x.eif"]
    assert main(["build", "-q", *map(str, words)]) == (0 if fits else 2)
    assert (tmp_path / "x.eif").exists() == fits
    assert fits or digest in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "reason"),
    [("services: []", "a service that the image does not have"), ("network: {ingress: [{port: 8444}]}", "is taken by")],
)
def test_settings_of_the_attestation_server_that_cannot_hold(tmp_path: Path, more: str, reason: str) -> None:
    from contextlib import ExitStack

    from enclavekit_rbuilds.base.progress import Progress
    from enclavekit_rbuilds.build import check_request, plan_build

    (tmp_path / "enclave.yaml").write_text(
        f"name: x\napp: {{rootfs: .}}\nattestation: {{proxied_port: 8444}}\n{more}\n"
    )
    built = request("--config", tmp_path / "enclave.yaml")
    with pytest.raises(ConfigError, match=reason), ExitStack() as scope:
        check_request(built)
        plan_build(built, Progress(io.StringIO()), scope)


def test_client_certificates_of_the_attestation_server_are_nothing_but_certificates(folder: Path) -> None:
    from enclavekit_core.errors import InputError
    from enclavekit_rbuilds.manifest.attestation import Attestation, read_client_ca, render_attestation

    assert render_attestation(Attestation(), None) == ()
    pem = (folder / "alice.crt").read_text()
    (folder / "two.pem").write_text(f"# ours\n{pem}and this\n{pem}")
    assert read_client_ca(str(folder / "two.pem")) == pem + pem
    for name, text in (("key.pem", "-----BEGIN PRIVATE KEY-----"), ("none.pem", "x"), ("bad.pem", pem[:200])):
        (folder / name).write_text(text)
        with pytest.raises(InputError):
            read_client_ca(str(folder / name))
    with pytest.raises(InputError):
        read_client_ca(str(folder / "missing.pem"))


def test_logs_go_into_the_image_as_pid_1_reads_them():
    import tomllib

    from enclavekit_rbuilds.manifest.logs import Logs, render_logs

    assert render_logs(Logs()) == b""
    logs = Logs(redact=['pw=\\S+"'], to_parent="all", stream_port=9100)
    assert tomllib.loads(render_logs(logs).decode()) == {
        "logs": {"redact": ['pw=\\S+"'], "to_parent": "all", "stream_port": 9100}
    }


def test_users_of_the_app_may_ask_pid_1_for_what_the_manifest_says(tmp_path):
    init = pytest.importorskip("enclavekit_enclave_init.config", reason="enclave_init is not installed")
    from enclavekit_rbuilds.app.directory import read_directory
    from enclavekit_rbuilds.manifest.control import ControlGrant, render_control
    from enclavekit_rbuilds.plan.app import resolve_grants

    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n")
    tree = read_directory(str(tmp_path))
    grants = [ControlGrant(user="web", permissions=["status", "logs"]), ControlGrant(user="7", permissions=["all"])]
    text = render_control(resolve_grants(tree, grants)).decode()
    config = init.add_app_config(init.InitConfig(), "[logs]\nto_parent = 'all'\n" + text, "init.toml")
    assert dict(config.control.allow)[1000] == {"status", "logs"} and len(dict(config.control.allow)[7]) > 2
    assert config.control.socket == init.InitConfig().control.socket and config.logs.to_parent == "all"
    assert render_control([]) == b""
    for wrong in (["web", "1000"], ["root"], ["0"], ["nobody-of-the-app"]):
        with pytest.raises(InputError):
            resolve_grants(tree, [ControlGrant(user=user, permissions=["status"]) for user in wrong])


@pytest.mark.parametrize("pattern", ["(", "(a)", "a*", "(?i)a"])
def test_patterns_that_pid_1_would_refuse_are_refused_at_build(pattern):
    from enclavekit_rbuilds.manifest.logs import Logs, check_logs

    with pytest.raises(ConfigError) as caught:
        check_logs(Logs(redact=[pattern]), "enclave.yaml")
    assert caught.value.key == "logs.redact"
