# SPDX-License-Identifier: Apache-2.0
"""Random requests and misfortunes against a model; see chaos_enclave.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import NAMESPACES

SCRIPT = Path(__file__).with_name("chaos_enclave.py")


def run_chaos(tmp_path, seed, steps, flood_lines, storm_forks, timeout_s):
    arguments = [str(tmp_path), str(seed), str(steps), str(flood_lines), str(storm_forks)]
    return subprocess.run(
        ["unshare", *NAMESPACES, sys.executable, str(SCRIPT), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("seed", [1, 2])
def test_short_chaos_agrees_with_the_model(tmp_path, seed):
    done = run_chaos(tmp_path, seed, steps=120, flood_lines=20_000, storm_forks=30, timeout_s=400)
    assert done.stdout == "agreed\n", done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("seed", range(10, 14))
def test_long_chaos_agrees_with_the_model(tmp_path, seed):
    # a flood of 100 MB: 17 bytes a line
    done = run_chaos(tmp_path, seed, steps=10_000, flood_lines=6_000_000, storm_forks=1500, timeout_s=3600)
    assert done.stdout == "agreed\n", done.stdout + done.stderr
