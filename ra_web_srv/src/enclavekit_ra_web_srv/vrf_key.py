# SPDX-License-Identifier: Apache-2.0
"""The key of the VRF: made at start, in memory only, gone with the process."""

from __future__ import annotations

import asyncio
import collections
import secrets
from concurrent.futures import ThreadPoolExecutor

from ecvrf import SUITES, EcvrfError, InvalidKeyError, Suite
from enclavekit_core.errors import ConfigError
from msgspec import Struct

from enclavekit_ra_web_srv.claims import encode_alpha

SECRET_BYTES = 32  # of all our curves
MAX_TRIES = 64  # a random scalar is refused once in 2**32 on P-256, never twice in practice
MAX_KEPT = 50_000  # some 500 bytes each; a proof takes a third of a millisecond or more
# as the Rust ra-web-srv calls them; with our key they are the suites of RFC 9381, whose challenge differs from draft 05
NAMES_OF_RUST = {
    "P256_SHA256_TAI": "ECVRF-P256-SHA256-TAI",
    "SECP256R1_SHA256_TAI": "ECVRF-P256-SHA256-TAI",
    "SECP256K1_SHA256_TAI": "ECVRF-SECP256K1-SHA256-TAI",
}


class FileProof(Struct, frozen=True, gc=False):  # there are many: the collector has nothing to find in them
    proof: bytes
    suite: str
    public_key: bytes
    """As the suite encodes a point: 32 bytes on edwards25519, 33 on the others."""


class VrfKey:
    """Proves; remembers what it has proven."""

    def __init__(self, suite_name: str) -> None:
        """Make a key. Raises ConfigError for a suite that is unknown, for verification only, or without its library."""
        found = SUITES.get(NAMES_OF_RUST.get(suite_name, suite_name))
        if found is None or found.draft_05:
            names = ", ".join(sorted(name for name, suite in SUITES.items() if not suite.draft_05))
            raise ConfigError("vrf_cipher_suite", "", f"{suite_name!r} is none of {names}")
        self.suite: Suite = found
        self._secret, self.public_key = _make_key(found)
        self._kept: collections.OrderedDict[tuple[bytes, bytes], FileProof] = collections.OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vrf")

    async def prove(self, path: bytes, digest: bytes) -> FileProof:
        """Return the proof over path and hash of a file, always the same one while this process lives.

        It is made in a thread: a page of a list asks for a thousand of them, at up to some milliseconds each.
        """
        key = (path, digest)
        found = self._kept.get(key)
        if found is None:
            alpha = encode_alpha(path, digest)
            prove = self.suite.prove
            proof = await asyncio.get_running_loop().run_in_executor(self._thread, prove, self._secret, alpha)
            found = self._kept[key] = FileProof(proof, self.suite.name, self.public_key)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return found

    def close(self) -> None:
        """Give up the proofs that nobody will see any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _make_key(suite: Suite) -> tuple[bytes, bytes]:
    for _ in range(MAX_TRIES):
        secret = secrets.token_bytes(SECRET_BYTES)
        try:
            return secret, suite.public_key(secret)
        except InvalidKeyError:
            continue
        except EcvrfError as exc:
            raise ConfigError("vrf_cipher_suite", "", str(exc)) from exc
    raise ConfigError("vrf_cipher_suite", "", f"no key of {suite.name} could be made")
