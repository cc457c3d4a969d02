# SPDX-License-Identifier: Apache-2.0
"""The reference page is what the code's tables say, and the tables fit together."""

from enclavekit_enclave_init.initctl.commands import COMMANDS, PS_COMMANDS
from enclavekit_enclave_init.initctl.requests import VERBS
from enclavekit_enclave_init.initctl.service import ControlService

from .initctl_reference import PAGE, render


def test_page_is_what_the_tables_say():
    assert PAGE.read_text() == render(), "run python enclave_init/tests/initctl_reference.py"


def test_every_request_is_carried_out_and_can_be_made():
    for verb in VERBS:
        assert callable(getattr(ControlService, f"_on_{verb}")), verb
    made = {
        verb for command in (*COMMANDS.values(), *PS_COMMANDS.values()) for verb in command.verbs or (command.verb,)
    }
    # of these two the connection's end, or `logs`, is initctl's way
    assert made == VERBS.keys() - {"ServiceLogs", "ServiceLogsStreamStop"}
