# SPDX-License-Identifier: Apache-2.0
"""nitro-cli's numbered errors: `[ E26 ] text` on stderr, and the number is the exit code.

Source: aws-nitro-enclaves-cli, docs/cli_errors and src/common/commands_parser; texts are ours, numbers are theirs.
Unlike nitro-cli, whose run-enclave ends with 39 whatever happened, the exit code is always the number that is printed.
"""

from __future__ import annotations

from enclavekit_core.errors import EnclavekitError
from enclavekit_core.nitro_errors import NITRO_ERRORS, format_error_code

EIF_PARSING = 35
BOOT_FAILURE = 36
SIGNATURE_CHECK = 59


class NitroError(EnclavekitError):
    """A failure with one of nitro-cli's numbers."""

    def __init__(self, number: int, message: str, details: tuple[str, ...] = ()) -> None:
        """`message` is "cannot <verb> <object>: <cause>"; `details` are lines to print below it."""
        self.number, self.message, self.details = number, message, details
        self.exit_code = number
        title = NITRO_ERRORS[number].title
        super().__init__("\n".join((f"[ {format_error_code(number)} ] {title}: {message}", *details)))


def explain(number: int) -> str:
    """Return what an error number means and what helps. Raises KeyError for one that nitro-cli has not."""
    text = NITRO_ERRORS[number]
    return f"[ {format_error_code(number)} ] {text.title}: {text.cause}.\nWhat helps: {text.cure}."
