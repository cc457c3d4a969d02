# SPDX-License-Identifier: Apache-2.0
"""Compile the C init: static, small, and the same bytes wherever the same compiler and C library are.

The source comes with rbuilds (data/init_c/init.c). Nothing of the place where it is compiled gets in.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Collection, Sequence
from importlib import resources

from enclavekit_core.errors import ConfigError, InputError, describe_cause

from enclavekit_rbuilds.base.cache import cache_root, cached, key_of
from enclavekit_rbuilds.framework.debian import MACHINE_TRIPLETS
from enclavekit_rbuilds.kernel.toolchain import Needs, Toolchain, open_toolchain

SOURCE = "init.c"
RECIPE = "1"  # part of the cache key: raise it when the flags change
FLAGS = (
    *("-std=gnu11", "-Os", "-static", "-s", "-Wall", "-Wextra"),
    *("-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-fno-asynchronous-unwind-tables", "-fno-ident"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,relro", "-Wl,-z,now"),
)
INITS = ("python", "c")
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
MAX_INIT_BYTES = 4 * 1024 * 1024  # with glibc it has 0.8 MB
LOST = (
    "no attestation server, no bus, no file hashes, no exec and cp, no proxies, no logs but the console: the app runs "
    "alone and reaches /dev/nsm and vsock itself"
)


def check_init(name: str) -> str:
    """Return `name` if there is such an init; else refuse it, naming those that there are. Raises ConfigError."""
    if name in INITS:
        return name
    known = {"rs": "Rust", "rust": "Rust", "go": "Go", "golang": "Go"}
    what = f"there is no init in {known[name]} here" if name in known else f"{name} is no init"
    raise ConfigError(
        f"--init {name}",
        "",
        f"{what}; python (the default) runs services and keeps logs, c is small and static and runs the app alone",
    )


def check_alone(source: str, **settings: Collection[object]) -> None:
    """Refuse settings that need services, of which the C init runs none. Raises ConfigError, which names `source`."""
    for key, value in settings.items():
        if value:
            reason = "it needs services, and the C init runs none; leave it out, or take the default init"
            raise ConfigError(source, key, reason)


def init_in_cache(arch: str, engine: str | None = None) -> str:
    """Return the compiled init, from the cache or freshly compiled. Raises CommandError, InputError.

    Args: engine: as in `compile_init`; without it, a container only if this machine has no compiler.
    """
    base = cache_root()
    if engine is None and shutil.which(compiler_for(arch)) is None:
        engine = ""
    try:
        os.makedirs(base, exist_ok=True)
    except OSError as exc:
        raise InputError("use cache directory", base, describe_cause(exc)) from exc
    with open_toolchain(engine, base, _needs(arch)) as toolchain:
        compiler = compiler_for(arch)
        about = toolchain.run([compiler, "--version"], "ask for the compiler's version").splitlines()[0]
        library = toolchain.run([compiler, "-print-file-name=libc.a"], "look for the C library").strip()
        digest = toolchain.run(["sha256sum", library], "read the static C library, libc.a").split()[0]
        key = key_of([RECIPE, *FLAGS, arch, about, digest, _source()])
        directory = cached("init-c", key, lambda work: _finish(_compile(toolchain, work, arch, ()), arch))
    return os.path.join(directory, "init")


def compile_init(work: str, arch: str, engine: str | None = None, *, defines: Sequence[str] = ()) -> str:
    """Compile the init into the directory `work`; return its path.

    Args:
        engine: docker, podman or buildah to compile in a container; None: with this machine's compiler.
        defines: NAME or NAME=value for the preprocessor; tests answer the heartbeat themselves.
    Raises: CommandError, InputError.
    """
    work = os.path.abspath(work)
    with open_toolchain(engine, work, _needs(arch)) as toolchain:
        path = _compile(toolchain, work, arch, defines)
    _finish(path, arch)
    return path


def compiler_for(arch: str) -> str:
    """Return the compiler's name: this machine's own, or a cross compiler as Debian names them."""
    return "gcc" if arch == platform.machine() else f"{MACHINE_TRIPLETS[arch]}-gcc"


def _needs(arch: str) -> Needs:
    return Needs("the C init", (compiler_for(arch),))


def _source() -> bytes:
    return resources.files("enclavekit_rbuilds").joinpath("data", "init_c", SOURCE).read_bytes()


def _compile(toolchain: Toolchain, work: str, arch: str, defines: Sequence[str]) -> str:
    source, target = os.path.join(work, SOURCE), os.path.join(work, "init")
    with open(source, "wb") as out:
        out.write(_source())
    words = [f"-D{word}" for word in defines]
    argv = [compiler_for(arch), *FLAGS, f"-ffile-prefix-map={work}=.", *words, "-o", target, source]
    toolchain.run(argv, "compile the C init")
    os.unlink(source)
    return target


def _finish(path: str, arch: str) -> None:
    """Check that what came out can be an init of this architecture, on its own."""
    with open(path, "rb") as source:
        raw = source.read(MAX_INIT_BYTES + 1)
    if len(raw) > MAX_INIT_BYTES or raw[:4] != b"\x7fELF" or raw[18:20] != ELF_MACHINES[arch].to_bytes(2, "little"):
        raise InputError("use the compiled init", path, f"it is no program for {arch}, or far too large")
    os.chmod(path, 0o755)  # noqa: S103 - a program
