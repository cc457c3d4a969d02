# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from enclavekit_rbuilds.framework.elf import strip_shared_object
from hypothesis import given
from hypothesis import strategies as st


def test_a_stripped_module_is_smaller_and_still_works(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("msgspec._core")
    if spec is None or spec.origin is None or not spec.origin.endswith(".so"):
        pytest.skip("msgspec has no compiled module here")
    raw = Path(spec.origin).read_bytes()
    stripped = strip_shared_object(raw)
    assert len(stripped) < len(raw)
    assert strip_shared_object(stripped) == stripped
    package = tmp_path / "msgspec"
    package.mkdir()
    for source in Path(spec.origin).parent.glob("*.py"):
        (package / source.name).write_bytes(source.read_bytes())
    (package / Path(spec.origin).name).write_bytes(stripped)
    code = "import msgspec; print(msgspec.__file__, msgspec.json.encode([1, 'x']))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert str(tmp_path) in done.stdout and '[1,"x"]' in done.stdout, done.stderr


@given(st.binary(max_size=200))
def test_anything_else_is_left_alone(raw: bytes) -> None:
    assert strip_shared_object(raw) == raw
    longer = b"\x7fELF\x02\x01" + raw
    assert len(strip_shared_object(longer)) <= len(longer)
