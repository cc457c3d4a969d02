# SPDX-License-Identifier: Apache-2.0
"""What can go wrong; a caller that takes hostile input needs to catch EcvrfError only."""

from __future__ import annotations


class EcvrfError(ValueError):
    """Base of all errors of this package."""


class InvalidKeyError(EcvrfError):
    """A secret or public key that is none of this suite."""


class InvalidProofError(EcvrfError):
    """A proof that does not hold: malformed, or not by this key over this alpha."""


class MissingLibraryError(EcvrfError):
    """The library that a suite's curve needs is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        self.library, self.extra = library, extra
        super().__init__(f"cannot use {extra}: {library} is not installed (pip install 'enclavekit-ecvrf[{extra}]')")
