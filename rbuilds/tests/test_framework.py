# SPDX-License-Identifier: Apache-2.0
"""The real framework: Debian's packages, the locked wheels, the framework's own interpreter. Needs the network."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError
from enclavekit_eif.cpio import extract_cpio, iter_cpio
from enclavekit_eif.reader import read_eif
from enclavekit_rbuilds.base.cache import cached, key_of
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.framework.assemble import COMMANDS, build_framework, units
from enclavekit_rbuilds.framework.bytecode import LOADERS
from enclavekit_rbuilds.framework.closure import (
    ALL_SERVICES,
    SERVICES,
    closure_of,
    declared_dependencies,
    member_of,
    package_of,
)
from enclavekit_rbuilds.framework.python_packages import SITE, own_sources
from enclavekit_rbuilds.framework.wheel_lock import LockedWheel, lock_text, locked_wheels, parse_lock, render

MAX_UNPACKED_BYTES = 120 * 1000 * 1000  # kernel and ramdisks of a small app: what an enclave's memory is spent on


def test_units_are_what_the_init_accepts() -> None:
    module = pytest.importorskip("enclavekit_enclave_init.units.unit", reason="enclave_init is not installed")
    names = set()
    for name, text in units().items():
        unit = module.parse_unit(name.removesuffix(".service"), text, name)
        names.add(unit.name)
        program = unit.argv[0].removeprefix("/usr/bin/")
        assert program in {*COMMANDS, "python3", "/usr/sbin/nats-server"}
    wanted = {f"{name}.service" for service in SERVICES.values() for name in service.units}
    assert wanted == set(units())
    assert {"fs-monitor", "nats", "pipeline", "ra-web-srv"} <= names
    for text in units().values():
        document = tomllib.loads(text)
        for key in ("After", "Requires"):
            assert set(document.get(key, [])) <= names


def test_lock_has_a_hash_for_every_package() -> None:
    blocks = lock_text().split("\n\n", 1)[1].replace("\\\n", "").splitlines()
    assert all(("==" in line and "--hash=sha256:" in line) or line.startswith("# needs ") for line in blocks if line)
    assert len(locked_wheels()) == lock_text().count("==")


def test_lock_lists_each_hash_once() -> None:
    same = LockedWheel("a", "1", ("00" * 32,), ("b",))
    text = render([{"a": same, "b": LockedWheel("b", "2", (digest * 32,))} for digest in ("11", "22")])
    assert text.count("00" * 32) == 1
    assert parse_lock(text) == {"a": same, "b": LockedWheel("b", "2", ("11" * 32, "22" * 32))}


@pytest.mark.parametrize("text", ["a==1\n", "a==1 --hash=sha256:00\n", f"# needs b\na==1 --hash=sha256:{'0' * 64}\n"])
def test_lock_without_hash_or_need_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_lock(text)


def test_closure_follows_what_is_declared() -> None:
    wheels = {name: LockedWheel(name, "1", (), needs) for name, needs in {"x": ("y",), "y": ("x",), "z": ()}.items()}
    declared = {"enclavekit-enclave-init": ["enclavekit-core"], "enclavekit-pipeline": ["enclavekit-eif", "x"]}
    found = closure_of(["pipeline"], wheels, lambda name: declared.get(name, []))
    assert found.wheels == ("x", "y")
    assert found.members == ("enclavekit-core", "enclavekit-enclave-init", "enclavekit-nsm", "enclavekit-pipeline")
    assert found.commands == ("enclave-init", "initctl", "nsm", "pipeline") and found.units == ("pipeline",)
    with pytest.raises(InputError, match="renew the lock"):
        closure_of(["pipeline"], {}, lambda name: declared.get(name, []))
    with pytest.raises(InputError, match="ssh"):
        closure_of(["ssh"], wheels, lambda name: [])


def test_closure_holds_nothing_of_other_services() -> None:
    wheels = locked_wheels()
    everything = closure_of([*ALL_SERVICES, "egress"], wheels)
    assert set(everything.wheels) == set(wheels), "the lock has a wheel that nothing needs"
    assert not {"aiohttp", "uvloop", "nats-py", "watchdog"} & set(closure_of(["pipeline"], wheels).wheels)
    assert not {"aiohttp", "uvloop", "cryptography"} & set(closure_of(["files"], wheels).wheels)
    assert closure_of(["attestation"], wheels).debian == () and closure_of(["files"], wheels).debian == ("nats-server",)
    ingress, egress = closure_of(["network"], wheels), closure_of(["egress"], wheels)
    quic = closure_of(["egress", "quic"], wheels)
    assert set(quic.wheels) - set(egress.wheels) == {"cryptography", "cffi"} and quic.members == egress.members
    assert set(egress.wheels) - set(ingress.wheels) == {"dnspython", "h11"} and ingress.members == egress.members
    assert "nftables" in egress.debian and ingress.debian == ()
    by_iptables = closure_of(["egress-iptables"], wheels)
    assert "iptables" in by_iptables.debian and "nftables" not in by_iptables.debian
    assert by_iptables.wheels == egress.wheels
    assert "pf-proxy" in ingress.commands and "pf-proxy" not in closure_of([], wheels).commands


@pytest.mark.parametrize("service", [*SERVICES, "none"])
def test_what_a_service_imports_is_in_its_closure(service: str) -> None:
    """Read from the sources: every import of ours and of a locked wheel, wherever it stands."""
    wheels = locked_wheels()
    closure = closure_of([] if service == "none" else [service], wheels)
    tops = {top: {name.lower().replace("_", "-") for name in names} for top, names in packages_distributions().items()}
    members = {package_of(member): member for member in closure.members}
    for package, where in own_sources(closure.packages).items():
        # what a member does not declare it imports for others, as core's bus does for the services that declare nats
        declared = set(declared_dependencies(members[package]))
        for path in Path(where).rglob("*.py"):
            for top in imported(path):
                names = tops.get(top, set())
                missing = names & declared - set(closure.wheels) - set(closure.members) - {"enclavekit-eif"}
                assert not missing, f"{path} imports {top}"


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("services", [[], ["pipeline"], ["attestation"], ["files", "network"]])
def test_framework_holds_its_services_only(framework: Path, services: list[str]) -> None:
    made = build_framework(None, "x86_64", "none", Progress(quiet=True), ready_root=str(framework), services=services)
    with open(made.ramdisk.path, "rb") as source:
        names = {entry.name.decode() for entry in iter_cpio(source)}
    closure = closure_of(services, locked_wheels())
    assert {name for name in names if name.startswith("service/")} == {
        f"service/{unit}.service" for unit in closure.units
    }
    assert {name.removeprefix("usr/bin/") for name in names if name.startswith("usr/bin/")} - {"python3"} == set(
        closure.commands
    )
    tops = {name.split("/")[3] for name in names if name.startswith(f"{SITE}/") and name.count("/") > 3}
    ours = {top for top in tops if top.startswith("enclavekit_") or member_of(top) in closure.members}
    assert ours == set(closure.packages)
    assert {f"own/{name}" for name in closure.members} == set(made.parts)
    assert {one.name for one in made.inputs} == set(closure.members)
    assert sum(made.parts.values()) < made.ramdisk.unpacked


def test_cache_keeps_nothing_of_a_failed_build(tmp_path: Path) -> None:
    def fail(work: str) -> None:
        Path(work, "half").write_text("made")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached("x", "key", fail, root=str(tmp_path))
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == []
    made = cached("x", "key", lambda work: Path(work, "whole").write_text("made") and None, root=str(tmp_path))
    assert cached("x", "key", fail, root=str(tmp_path)) == made


def test_keys_do_not_run_together() -> None:
    assert key_of(["ab", "c"]) != key_of(["a", "bc"]) != key_of(["abc"])


@pytest.mark.long
def test_real_framework_twice(app: Path, tmp_path: Path) -> None:
    """About 30 s: two builds from nothing, then the framework's interpreter imports all that it will run."""
    images = []
    for number, (zone, umask) in enumerate([("UTC", 0o022), ("Asia/Tokyo", 0o077)]):
        here = tmp_path / str(number)
        here.mkdir()
        env = {**os.environ, "XDG_CACHE_HOME": str(here / "cache"), "TZ": zone, "PYTHONHASHSEED": str(number)}
        argv = [sys.executable, "-c", "import sys; from enclavekit_rbuilds.cli import main; sys.exit(main())"]
        argv += ["build", "--rootfs", str(app), "--cmd", "serve", "--output", "app.eif", "--json"]
        done = subprocess.run(argv, cwd=here, env=env, umask=umask, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        images.append((here / "app.eif").read_bytes())
    assert images[0] == images[1]
    parts = json.loads(done.stdout)["parts"]
    assert sum(sizes.get("unpacked", sizes["stored"]) for sizes in parts.values()) < MAX_UNPACKED_BYTES

    root = tmp_path / "root"
    root.mkdir()
    eif = read_eif(str(here / "app.eif"))
    extract_cpio(eif.open_section(eif.ramdisks[0]), str(root))
    modules = ["aiohttp.web", "cbor2", "cryptography.x509", "nats", "ssl", "uvloop", "watchdog", "yaml"]
    check_imports(root, [*modules, *closure_of(ALL_SERVICES, locked_wheels()).packages])


@pytest.mark.long
@pytest.mark.parametrize("service", [*SERVICES, "none"])
def test_real_framework_imports_all_that_its_service_runs(service: str, tmp_path: Path) -> None:
    """Each service alone, with the real base: every module of ours that is in it is imported by its interpreter."""
    services = [] if service == "none" else [service]
    made = build_framework(None, "x86_64", "none", Progress(quiet=True), services=services)
    root = tmp_path / "root"
    root.mkdir()
    with open(made.ramdisk.path, "rb") as source:
        extract_cpio(source, str(root))
    # the mains of its commands, and what they import when they run
    closure = closure_of(services, locked_wheels())
    modules = [COMMANDS[name].partition(":")[0] for name in closure.commands]
    modules += RUN_BY[service.removesuffix("-iptables")]
    check_imports(root, modules)
    assert sum(made.parts.values()) == pytest.approx(made.ramdisk.unpacked, rel=0.02)
    assert {"wheel", "debian", "own"} <= {part.partition("/")[0] for part in made.parts}


RUN_BY = {  # modules that a service's program imports only once it runs
    "attestation": ["enclavekit_ra_web_srv.server", "enclavekit_pf_proxy.cli"],
    "files": ["enclavekit_fs_monitor.service", "enclavekit_core.bus_setup"],
    "pipeline": ["enclavekit_pipeline.enclave.serve_exec", "enclavekit_pipeline.enclave.serve_copy"],
    "network": ["enclavekit_pf_proxy.cli"],
    "egress": ["enclavekit_pf_proxy.policy.gate", "enclavekit_pf_proxy.resolver.service", "dns.rdtypes.IN.AAAA"],
    "quic": ["enclavekit_pf_proxy.quic.session"],
    "none": ["enclavekit_enclave_init.boot.execute"],
}


def check_imports(root: Path, modules: list[str]) -> None:
    lib = root / "usr/lib/x86_64-linux-gnu"
    code = f"import sys; sys.path.insert(0, {str(root / SITE)!r}); import {', '.join(modules)}"
    loader = [str(lib / LOADERS["x86_64"]), "--library-path", str(lib), str(root / "usr/bin/python3.11")]
    env = {"PYTHONHOME": str(root / "usr")}
    done = subprocess.run([*loader, "-s", "-S", "-B", "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
