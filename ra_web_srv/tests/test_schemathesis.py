# SPDX-License-Identifier: Apache-2.0
"""schemathesis against the server's own OpenAPI document: what it generates is answered as the document says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,missing_required_header"
)
# a body that is too long as a whole is refused before anybody looks at its fields: 413 is a refusal, too
CONFIGURATION = """
[checks.negative_data_rejection]
expected-statuses = ["400", "403", "404", "405", "406", "409", "413", "415", "422", "429", "503"]
"""


def run(server, examples, directory):
    program = Path(sys.executable).parent / "schemathesis"
    assert program.exists(), "schemathesis is part of the development set-up"
    argv = [program, "run", f"https://127.0.0.1:{server.port}/openapi.json", "--tls-verify", "false", "--no-color"]
    argv += [
        "--checks",
        CHECKS,
        "--max-examples",
        str(examples),
        "--seed",
        "9381",
        "--phases",
        "examples,coverage,fuzzing",
    ]
    argv += ["--generation-database", "none", "--suppress-health-check", "all"]
    (directory / "schemathesis.toml").write_text(CONFIGURATION)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "SCHEMATHESIS_HOOKS": ""}
    return subprocess.run(argv, capture_output=True, text=True, cwd=directory, env=environment, timeout=1200)


@pytest.mark.parametrize("examples", [2, pytest.param(100, marks=pytest.mark.long)])
def test_server_does_what_its_document_says(server, data, tmp_path, examples):
    (data / "f").write_bytes(b"x")
    server.generate_and_wait(str(data))
    done = run(server, examples, tmp_path)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert server.get("/health").status == 200
