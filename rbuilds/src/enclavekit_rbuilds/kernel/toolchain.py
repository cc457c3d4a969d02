# SPDX-License-Identifier: Apache-2.0
"""Where a kernel is compiled: on this machine, or in a container that sees one directory.

Compiler and linker decide the bytes, so both say what they are, and that is part of what the kernel is known by.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from enclavekit_core.errors import CommandError, InputError, describe_cause

from enclavekit_rbuilds.app.container import DockerfileBuild, build_command, choose_engine
from enclavekit_rbuilds.base.command import STDERR_TAIL_BYTES, run
from enclavekit_rbuilds.framework.origin import DEFAULT_IMAGE, IMAGE_VARIABLE

PACKAGES = "build-essential flex bison bc libelf-dev xz-utils perl"
CURE = f"on Debian: apt-get install {PACKAGES}; or compile in a container: --in-container docker"
NOT_FOUND = 127  # of env(1)
CLEANUP_S = 60.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UMASK = 0o022
MAX_BUILD_S = 4 * 3600.0  # six minutes on two idle cores; a busy machine may take an hour
DOCKERFILE = f"""FROM {{image}}
RUN apt-get update && apt-get install -y --no-install-recommends {PACKAGES} && rm -rf /var/lib/apt/lists/*
"""


@dataclass(frozen=True, slots=True)
class Needs:
    """What has to be there to compile something."""

    what: str
    programs: tuple[str, ...]
    headers: tuple[str, ...] = ()


KERNEL_NEEDS = Needs(
    "a kernel",
    ("make", "gcc", "ld", "flex", "bison", "bc", "tar", "xz", "gzip", "perl"),
    ("gelf.h",),  # of libelf, for objtool
)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Runs programs where the kernel is compiled; paths mean the same here and there."""

    prefix: tuple[str, ...] = ()
    """Command line of the container engine; empty on this machine."""
    what: str = "on this machine"

    def run(
        self,
        argv: Sequence[str],
        what: str,
        env: Mapping[str, str] | None = None,
        *,
        on_line: Callable[[str], None] | None = None,
    ) -> str:
        """Run `argv` with `env` and nothing else in its environment; return its standard output.

        Args: on_line: gets each line of output instead.
        Raises: CommandError, InputError.
        """
        path = PATH if self.prefix else os.environ.get("PATH", PATH)
        words = [f"{name}={value}" for name, value in {"PATH": path, "LC_ALL": "C", **(env or {})}.items()]
        command = [*self.prefix, "env", "-i", *words, *argv]
        return _stream(command, argv, what, on_line)

    def compiler(self) -> str:
        """Return the first line of `gcc --version`."""
        return self.run(["gcc", "--version"], "ask for the compiler's version").splitlines()[0]

    def linker(self) -> str:
        """Return the first line of `ld --version`."""
        return self.run(["ld", "--version"], "ask for the linker's version").splitlines()[0]

    def missing(self, needs: Needs) -> list[str]:
        """Return which programs and headers are not there."""
        lost = []
        for program in needs.programs:
            try:
                self.run([program, "--version"], f"look for {program}")
            except CommandError as exc:
                if exc.returncode == NOT_FOUND:
                    lost.append(program)
        for header in needs.headers if not lost else ():
            try:
                self.run(["gcc", "-E", "-include", header, "-x", "c", os.devnull], f"look for {header}")
            except CommandError:
                lost.append(header)
        return lost


@contextlib.contextmanager
def open_toolchain(engine: str | None, directory: str, needs: Needs = KERNEL_NEEDS) -> Iterator[Toolchain]:
    """Give what compiles in `directory`: this machine, or a container by `engine`. Raises CommandError, InputError.

    Args: engine: docker, podman, buildah, or empty for the first that works; None is this machine.
    """
    if engine is None:
        toolchain = Toolchain()
        if lost := toolchain.missing(needs):
            raise InputError("compile", needs.what, f"this machine lacks {', '.join(lost)}; {CURE}")
        yield toolchain
        return
    engine = choose_engine(engine)
    base = os.environ.get(IMAGE_VARIABLE) or DEFAULT_IMAGE
    with contextlib.ExitStack() as scope:
        toolchain = scope.enter_context(_in_container(engine, base, directory))
        if toolchain.missing(needs):  # an image that has all of it is used as it is, so that one can be pinned
            image = scope.enter_context(_image_with_tools(engine, base))
            toolchain = scope.enter_context(_in_container(engine, image, directory, base))
            if lost := toolchain.missing(needs):
                raise InputError("compile", needs.what, f"the container of {base} lacks {', '.join(lost)}")
        yield toolchain


@contextlib.contextmanager
def _in_container(engine: str, image: str, directory: str, named: str = "") -> Iterator[Toolchain]:
    what = f"in a container of {named or image} by {engine}"
    shared = ("--volume", f"{directory}:{directory}")
    if engine != "buildah":
        user = ("--user", f"{os.geteuid()}:{os.getegid()}") if engine == "docker" and os.geteuid() else ()
        # compiling needs no network, and nothing that is compiled gets any
        alone = ("--network", "none", "--security-opt", "label=disable")
        yield Toolchain((engine, "run", "--rm", *alone, *shared, *user, image), what)
        return
    container = run(["buildah", "from", image], f"start a container of {image}").decode().split()[-1]
    try:
        # chroot isolation needs neither user namespaces nor a runtime
        yield Toolchain(("buildah", "run", "--isolation", "chroot", *shared, container, "--"), what)
    finally:
        subprocess.run(["buildah", "rm", container], capture_output=True, check=False, timeout=CLEANUP_S)


@contextlib.contextmanager
def _image_with_tools(engine: str, base: str) -> Iterator[str]:
    tag = f"localhost/enclavekit-kernel-tools:{secrets.token_hex(8)}"
    with tempfile.TemporaryDirectory(prefix="enclavekit-tools-") as context:
        dockerfile = os.path.join(context, "Dockerfile")
        with open(dockerfile, "w", encoding="utf-8") as out:
            out.write(DOCKERFILE.format(image=base))
        build = DockerfileBuild(dockerfile, context, host_network=True)
        run(build_command(build, engine, tag), f"put compilers into an image of {base}")
    try:
        yield tag
    finally:
        subprocess.run([engine, "rmi", tag], capture_output=True, check=False, timeout=CLEANUP_S)


def _stream(command: Sequence[str], argv: Sequence[str], what: str, on_line: Callable[[str], None] | None) -> str:
    """Run a command to its end, a line at a time. Raises CommandError, InputError."""
    lines: list[str] = []
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                umask=UMASK,
                start_new_session=True,  # make's children end with it, whatever ends us
            )
        except OSError as exc:
            raise InputError("run", command[0], describe_cause(exc)) from exc
        assert process.stdout is not None
        timer = threading.Timer(MAX_BUILD_S, _end, [process])
        try:
            timer.start()
            for line in process.stdout:
                (on_line or lines.append)(line.rstrip("\n"))
            returncode = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            timer.cancel()
            process.wait()
            process.stdout.close()
        if returncode:
            size = errors.seek(0, os.SEEK_END)
            errors.seek(max(0, size - STDERR_TAIL_BYTES))
            raise CommandError(what, list(argv), returncode, _most_telling(errors.read().decode(errors="replace")))
    return "\n".join(lines)


def _most_telling(stderr: str) -> str:
    """Return the output without make's own last words, which only say that something before them failed."""
    lines = [line for line in stderr.splitlines() if not line.startswith(("make:", "make["))]
    return "\n".join(lines) or stderr


def _end(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended by itself
