# SPDX-License-Identifier: Apache-2.0
"""A suite needs the library of its curve only, and names it when it is missing."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
import ecvrf
assert not {{"nacl", "coincurve", "cryptography"}} & {{name for name, module in sys.modules.items() if module}}
for suite in ecvrf.SUITES.values():
    try:
        print(suite.name, suite.proof_bytes)
    except ecvrf.MissingLibraryError as exc:
        print(suite.name, exc.library)
"""


@pytest.mark.parametrize(
    ("missing", "unusable"),
    [
        ([], {}),
        (["coincurve"], {}),
        (["cryptography"], {"ECVRF-P256": "cryptography", "SECP256K1": "cryptography"}),
        (["nacl"], {"EDWARDS25519": "PyNaCl"}),
    ],
)
def test_suites_work_without_the_libraries_of_others(missing, unusable):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(missing=missing)], capture_output=True, text=True, check=True, timeout=60
    )
    for line in done.stdout.splitlines():
        name, result = line.split()
        expected = next((library for curve, library in unusable.items() if curve in name), None)
        assert result == (expected or ("80" if "EDWARDS" in name else "81"))
