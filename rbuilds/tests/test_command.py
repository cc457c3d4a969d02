# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from enclavekit_core.errors import CommandError, InputError
from enclavekit_rbuilds.app.container import choose_engine
from enclavekit_rbuilds.base.command import run


def test_output_and_failure(tmp_path: Path) -> None:
    assert run([sys.executable, "-c", "print('x')"], "print") == b"x\n"
    with pytest.raises(CommandError, match=r"cannot print: .* exited with 3: the reason") as caught:
        run([sys.executable, "-c", "import sys; print('the reason', file=sys.stderr); sys.exit(3)"], "print")
    assert caught.value.exit_code == 5


def test_programs_that_are_missing_or_of_another_machine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not installed; it is needed"):
        run(["no-such-program-anywhere"], "work", needed_for="it is needed")
    alien = tmp_path / "alien"
    alien.write_bytes(b"\x7fELF\x02\x01\x01" + b"\xff" * 60)
    alien.chmod(0o755)
    with pytest.raises(InputError, match="cannot run"):
        run([str(alien)], "work")


def test_the_first_engine_that_works_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, status in (("docker", 1), ("podman", 0), ("buildah", 0)):
        (tmp_path / name).write_text(f"#!{sys.executable}\nimport sys; sys.exit({status})\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_engine() == "podman"
    assert choose_engine("buildah") == "buildah"
    with pytest.raises(InputError, match="docker is installed but does not work"):
        choose_engine("docker")
    for name in ("docker", "podman", "buildah"):
        os.unlink(tmp_path / name)
    with pytest.raises(InputError, match="docker is not installed; podman is not installed; buildah"):
        choose_engine()
