# SPDX-License-Identifier: Apache-2.0
"""The real framework: Debian's packages, the locked wheels, the framework's own interpreter. Needs the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from enclavekit_eif.cpio import extract_cpio
from enclavekit_eif.reader import read_eif
from enclavekit_rbuilds.base.cache import cached, key_of
from enclavekit_rbuilds.framework.assemble import COMMANDS, units
from enclavekit_rbuilds.framework.bytecode import LOADERS
from enclavekit_rbuilds.framework.python_packages import OWN_PACKAGES, SITE, lock_text
from enclavekit_rbuilds.framework.wheel_lock import render

MAX_UNPACKED_BYTES = 120 * 1000 * 1000  # kernel and ramdisks of a small app: what an enclave's memory is spent on


def test_units_are_what_the_init_accepts() -> None:
    module = pytest.importorskip("enclavekit_enclave_init.units", reason="enclave_init is not installed")
    names = set()
    for name, text in units().items():
        unit = module.parse_unit(name.removesuffix(".service"), text, name)
        names.add(unit.name)
        program = unit.argv[0].removeprefix("/usr/bin/")
        assert program in {*COMMANDS, "python3", "/usr/sbin/nats-server"}
    assert {"fs-monitor", "nats", "pipeline", "ra-web-srv"} <= names
    for text in units().values():
        document = tomllib.loads(text)
        for key in ("After", "Requires"):
            assert set(document.get(key, [])) <= names


def test_lock_has_a_hash_for_every_package() -> None:
    blocks = lock_text().split("\n\n", 1)[1].replace("\\\n", "").splitlines()
    assert all("==" in line and "--hash=sha256:" in line for line in blocks if line)


def test_lock_lists_each_hash_once() -> None:
    text = render([{("a", "1"): "00", ("b", "2"): "11"}, {("a", "1"): "00", ("b", "2"): "22"}])
    assert text.count("sha256:00") == 1 and "sha256:11" in text and "sha256:22" in text


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
    lib = root / "usr/lib/x86_64-linux-gnu"
    modules = [*OWN_PACKAGES, "aiohttp.web", "cbor2", "cryptography.x509", "nats", "ssl", "uvloop", "watchdog", "yaml"]
    mains = [target.partition(":")[0] for target in COMMANDS.values()]
    code = f"import sys; sys.path.insert(0, {str(root / SITE)!r}); import {', '.join([*modules, *mains])}"
    loader = [str(lib / LOADERS["x86_64"]), "--library-path", str(lib), str(root / "usr/bin/python3.11")]
    env = {"PYTHONHOME": str(root / "usr")}
    done = subprocess.run([*loader, "-s", "-S", "-B", "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
