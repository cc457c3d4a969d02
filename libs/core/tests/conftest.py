# SPDX-License-Identifier: Apache-2.0
import pytest
from enclavekit_core import fabric


@pytest.fixture
def runtime_dir(tmp_path, monkeypatch):
    """A fabric of the test's own, seen as from the host."""
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, str(tmp_path / "rt"))
    monkeypatch.delenv(fabric.TRANSPORT_VARIABLE, raising=False)
    return fabric.ensure_runtime_dir()
