# SPDX-License-Identifier: Apache-2.0
"""nitro-cli's numbered errors: `[ E26 ] text` on stderr, and the number is the exit code.

Source: aws-nitro-enclaves-cli, docs/cli_errors and src/common/commands_parser; texts are ours, numbers are theirs.
Unlike nitro-cli, whose run-enclave ends with 39 whatever happened, the exit code is always the number that is printed.
"""

from __future__ import annotations

from enclavekit_core.errors import EnclavekitError

ERRORS: dict[int, tuple[str, str]] = {
    3: ("Invalid argument", "a flag or a key of the --config file has a value that cannot be used"),
    17: ("JSON failure", "a JSON file, such as the one given with --config, cannot be parsed"),
    19: ("File operation failure", "a file, such as the image, cannot be opened, read or written"),
    20: ("Duplicate CPU ids", "a CPU id was given twice in --cpu-ids"),
    23: ("Malformed CPU id", "a CPU id is not a number"),
    26: ("Insufficient memory requested", "an enclave needs four times the size of its image, and at least 64 MiB"),
    27: ("Insufficient memory available", "the machine has less memory than was requested"),
    29: ("Enclave driver failure", "the enclave cannot be started as asked: its CID is taken"),
    35: ("EIF parsing failure", "the image is damaged, cut short, or not an enclave image at all"),
    36: ("Enclave boot failure", "the enclave ended, or did not send its heartbeat, before it was up"),
    38: ("Command not executed by the enclave process", "the enclave ended while the command waited for it"),
    39: ("Enclave process connection failure", "no running enclave has that id, or its process does not answer"),
    44: ("Enclave console connection failure", "the console exists in debug mode only (--debug-mode)"),
    58: ("Naming failure", "no running enclave has that name"),
    59: ("EIF signature checker failure", "the image is signed, but the signature is not one of this image"),
}

EIF_PARSING = 35
BOOT_FAILURE = 36
SIGNATURE_CHECK = 59


class NitroError(EnclavekitError):
    """A failure with one of nitro-cli's numbers."""

    def __init__(self, number: int, message: str, details: tuple[str, ...] = ()) -> None:
        """`message` is "cannot <verb> <object>: <cause>"; `details` are lines to print below it."""
        self.number, self.message, self.details = number, message, details
        self.exit_code = number
        super().__init__("\n".join((f"[ E{number:02} ] {ERRORS[number][0]}: {message}", *details)))


def explain(number: int) -> str:
    """Return what an error number means. Raises KeyError for one that this emulator never prints."""
    title, meaning = ERRORS[number]
    return f"[ E{number:02} ] {title}: {meaning}."
