# SPDX-License-Identifier: Apache-2.0
"""Compiling in a container: a plain Debian image gets its compilers, nothing stays behind. Takes minutes."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.framework.origin import IMAGE_VARIABLE
from enclavekit_rbuilds.init_c.build import compile_init
from enclavekit_rbuilds.kernel.make import KernelRequest, make_kernel

from .conftest import file, tar_bytes
from .test_framework_origin import buildah_image, debian_root, docker_image  # noqa: F401 - fixtures
from .test_kernel_make import MAKEFILE

# a program of the container's compiler goes into the kernel, so that it has to be there
COMPILED = MAKEFILE + "\t@gcc -include gelf.h -Os -c -x c -o x.o /dev/null && cat x.o >> $(ARCHDIR)/bzImage\n"


@pytest.mark.long
@pytest.mark.parametrize("engine", ["docker", "buildah"])
def test_container_compiles_kernel_and_init(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = request.getfixturevalue(f"{engine}_image")
    monkeypatch.setenv(IMAGE_VARIABLE, image)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "linux.tar"
    source.write_bytes(tar_bytes([file("linux/Kconfig", b""), file("linux/Makefile", COMPILED.encode())]))
    made = make_kernel(KernelRequest(str(source), engine=engine), Progress(io.StringIO()))
    text = Path(made.directory, "bzImage").read_bytes()
    assert b"TZ=UTC\n" in text and b"\n0022\n" in text and b"\x7fELF" in text
    assert "Debian" in made.record.compiler
    (tmp_path / "init").mkdir()
    init = Path(compile_init(str(tmp_path / "init"), "x86_64", engine))
    assert init.read_bytes().startswith(b"\x7fELF") and init.stat().st_mode & 0o777 == 0o755
    listed = subprocess.run([engine, "images", "-q"], capture_output=True, check=True, text=True).stdout.split()
    assert len(listed) <= 1, "the image with the compilers is gone again"
