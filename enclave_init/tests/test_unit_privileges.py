# SPDX-License-Identifier: Apache-2.0
"""What a unit's rights and rank come to in a real enclave: setuid programs, and who is killed when memory is short."""

import os
import shutil

import pytest
from enclavekit_emulator.memory_limit import create_memory_group, remove_memory_group

from .test_unit_effects import ONCE, OVER, py

pytestmark = [
    pytest.mark.usefixtures("_namespaces"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a single mapped id cannot become another"),
]


def test_setuid_program_gives_nothing_to_who_has_no_new_privileges(machine):
    program = machine.image / "who"
    shutil.copy(shutil.which("id"), program)
    program.chmod(0o4755)
    machine.unit("may", "ExecStart = ['/who', '-u']\nUser = 54321\n" + ONCE)
    machine.unit("may-not", "ExecStart = ['/who', '-u']\nUser = 54321\nNoNewPrivileges = true\n" + ONCE)
    machine.unit("app", "ExecStart = 'true'\nAfter = ['may', 'may-not']\n" + OVER)
    machine.boot().wait()
    assert (machine.log("may"), machine.log("may-not")) == (["0"], ["54321"])


def test_who_has_the_highest_oom_score_is_killed_first(machine):
    """The enclave as a whole runs out of memory: the small unit goes, and not the large one that asks for more."""
    group = create_memory_group("oom-score-test", 160 << 20)
    if group is None:
        pytest.skip("this machine has no memory groups")
    try:
        machine.prefix = ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]
        machine.unit(
            "small",
            py("import time\nx = bytearray(8 << 20)\nopen('/tmp/small', 'x').close()\ntime.sleep(1000)\n")
            + "OOMScoreAdjust = 1000\n",
        )
        machine.unit(
            "large",
            py(
                "import os, time\n"
                "x = [bytearray(40 << 20)]\n"
                "while not os.path.exists('/tmp/small'): time.sleep(0.01)\n"
                "while 'small killed' not in open('/log/enclave-init.log').read(): x.append(bytearray(1 << 20))\n"
                "print('lives')\n"
            )
            + OVER,
        )
        report = machine.boot().wait()
        assert (report["unit"], report["exit_status"]) == ("large", 0), machine.console
        assert "enclave-init: small killed by signal 9" in machine.console and machine.log("large") == ["lives"]
    finally:
        machine.close()
        remove_memory_group(group)
