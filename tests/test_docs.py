# SPDX-License-Identifier: Apache-2.0
"""Every command in the docs runs, every link leads somewhere."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import COMMAND_TIMEOUT_S, ROOT, need
from .console_fences import read_steps

PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("libs/*/README.md")]
)
# ./dev test is what runs this file; ./dev demo and git clone have tests of their own in test_demo.py
NOT_HERE = ("./dev ", "git clone ", "cd enclavekit")
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target, _anchor in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


@pytest.mark.xdist_group("enclave")
@pytest.mark.parametrize("page", [page for page in PAGES if "```console" in page.read_text()], ids=name_of)
@pytest.mark.parametrize("enclave", ["process"], indirect=True)
def test_commands_of_the_page_run_as_shown(page, shell, notes, enclave, tmp_path):
    need("bash")
    environment = {
        **shell.environment,
        "PIPELINE_EIF": str(notes),
        "PIPELINE_IDENTITY": str(shell.directory / "keys/alice"),
        "PIPELINE_INSECURE_DEV_ROOT": enclave.dev_root,
        "CHECKOUT": str(ROOT),
        "ENCLAVE": str(enclave.cid),
    }
    steps = [step for step in read_steps(page.read_text()) if not step.command.startswith(NOT_HERE)]
    # one shell for the page, so that cd, export and background jobs carry over; markers tell the steps apart
    script = "".join(f"{step.command}\nprintf '\\001%s\\001\\n' $?\n" for step in steps)
    with subprocess.Popen(
        ["bash"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            # what the page leaves in the background must not hold the pipe open
            output, _ = process.communicate(f"trap 'kill $(jobs -p) 2>/dev/null' EXIT\n{script}", COMMAND_TIMEOUT_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    # jobs in the background write between anything: a marker need not have a line of its own
    results = re.split(r"\001(\d+)\001\n", output)
    assert len(results) == 2 * len(steps) + 1, output
    for step, printed, code in zip(steps, results[::2], results[1::2], strict=False):
        assert int(code) == step.exit_code, f"$ {step.command}\n{printed}"
        # what weakens a guarantee says so each time; pages explain it once
        printed = "".join(f"{line}\n" for line in printed.splitlines() if ": warning: " not in line)
        assert step.accepts(printed), f"$ {step.command}\nexpected:\n{step.expected}\ngot:\n{printed}"


PYTHON_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=name_of)
def test_python_of_the_page_runs(page, tmp_path):
    for code in PYTHON_FENCE.findall(page.read_text()):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
