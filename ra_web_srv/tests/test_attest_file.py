# SPDX-License-Identifier: Apache-2.0
"""`attest file` against the running server: end to end, with every way of not being proven."""

import json
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

ATTEST = str(Path(sys.executable).parent / "attest")


@pytest.fixture
def attest(server, data, nsm, tmp_path):
    """Runs `attest file` about `data/f`, which holds "content"; keyword arguments are flags."""
    (data / "f").write_bytes(b"content")
    (tmp_path / "same").write_bytes(b"content")
    (tmp_path / "other").write_bytes(b"something else")
    (tmp_path / "root.pem").write_text(ssl.DER_cert_to_PEM_cert(nsm.root_der))

    def run(*flags, path=None, expect="same", url=None, root=True, pcr="10" * 48):
        argv = [ATTEST, "file", "--url", url or f"https://127.0.0.1:{server.port}", path or str(data / "f")]
        argv += ["--expect", str(tmp_path / expect), "--pcr", f"0={pcr}", *flags]
        if root:
            argv += ["--insecure-dev-root", str(tmp_path / "root.pem")]
        return subprocess.run(argv, capture_output=True, text=True, timeout=100)

    return run


def test_file_is_proven(attest, server, sha3, data):
    done = attest("--generate", "--json")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["verified"] is True
    names = [step["name"] for step in verdict["steps"]]
    assert names[names.index("binding") :][0] == "binding"
    assert names[-2:] == ["file", "vrf"]
    assert all(step["passed"] for step in verdict["steps"])
    claim = json.loads(bytes.fromhex(verdict["document"]["user_data"]))
    assert (claim["file_path"], claim["sha3_hash"]) == (str(data / "f"), sha3(b"content"))
    done = attest()
    assert done.returncode == 0
    assert done.stdout.endswith(
        f"VERIFIED: {data / 'f'} in the enclave is {done.args[done.args.index('--expect') + 1]}\n"
    )


def test_each_failure_has_its_exit_code(attest, server, data, tmp_path):
    assert attest("--generate").returncode == 0
    for expected, done in (
        (20, attest(expect="other")),
        (17, attest(pcr="22" * 48)),
        (12, attest(root=False)),
        (19, attest("--service", "pipeline")),
        (3, attest(path=str(data / "missing"))),
        (3, attest(path="/etc/passwd")),
        (3, attest(url="https://127.0.0.1:1")),
        (2, attest(path="relative")),
        (2, attest(expect="not there")),
        (2, attest(url="http://127.0.0.1:1")),
        (20, attest(expect="other")),
    ):
        assert done.returncode == expected, (expected, done.stdout, done.stderr)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("attest: cannot "), done.stderr
        assert "VERIFIED:" not in done.stdout
    verdict = json.loads(attest("--json", expect="other").stdout)
    assert (verdict["verified"], verdict["failed_step"]) == (False, "file")
