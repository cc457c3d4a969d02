# SPDX-License-Identifier: Apache-2.0
"""What the caller demands of an enclave before it says a word, from flags and environment."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from enclavekit_attestation.binding import check_binding
from enclavekit_attestation.policy import Policy, load_policy, parse_pcr
from enclavekit_attestation.verify import VerifiedDocument, verify_document
from enclavekit_core.errors import ConfigError, VerificationError

SERVICE = "pipeline"
VARIABLES = {
    "eif": "PIPELINE_EIF",
    "policy": "PIPELINE_POLICY",
    "identity": "PIPELINE_IDENTITY",
    "insecure_dev_root": "PIPELINE_INSECURE_DEV_ROOT",
}


@dataclass(frozen=True)
class Trust:
    """The policy, and the root that evidence must end in; None is AWS's."""

    policy: Policy
    root: bytes | None = None

    def verify(self, document: bytes, nonce: bytes, certificate_der: bytes) -> VerifiedDocument:
        """Raises VerificationError unless `document` proves the enclave that holds the certificate's key, now."""
        now_ms = time.time_ns() // 1_000_000
        verified = verify_document(document, self.policy, now_ms=now_ms, root=self.root, nonce=nonce)
        check_binding(verified.user_data, SERVICE, certificate_der, public_key=verified.public_key)
        return verified


def build_trust(
    *,
    eif: str | None,
    policy: str | None,
    pcrs: list[str],
    insecure_dev_root: str | None,
    allow_debug: bool,
    max_age_s: float | None,
    environment: Mapping[str, str],
) -> Trust:
    """Return the demands; flags go before the environment.

    Raises: ConfigError if nothing, or more than one thing, says which code the enclave should run.
    """
    given = [name for name, value in (("--eif", eif), ("--policy", policy), ("--pcr", pcrs)) if value]
    if len(given) > 1:
        raise ConfigError(" and ".join(given), "", "one of them says what the enclave should be")
    if not given:
        eif = environment.get(VARIABLES["eif"]) or None
        policy = environment.get(VARIABLES["policy"]) or None
        if eif and policy:
            raise ConfigError(f"{VARIABLES['eif']} and {VARIABLES['policy']}", "", "one of them says what it should be")
    if eif:
        demands = Policy(_measure(eif))
    elif policy:
        demands = load_policy(policy)
    elif pcrs:
        demands = Policy(_parse_pcrs(pcrs))
    else:
        raise ConfigError(
            "an enclave", "", "nothing says what it should be: give --eif FILE, --policy FILE or --pcr N=HEX"
        )
    if not demands.identifies_code:
        raise ConfigError(
            "the policy", "", "it does not pin the image: PCR0, or PCR1 and PCR2, must have an expected value"
        )
    if allow_debug or max_age_s is not None:
        demands = dataclasses.replace(
            demands,
            allow_debug=allow_debug or demands.allow_debug,
            max_age_s=demands.max_age_s if max_age_s is None else max_age_s,
        )
    if demands.allow_debug:
        print("pipeline: warning: debug mode is allowed: the parent can read the enclave's memory", file=sys.stderr)
    insecure_dev_root = insecure_dev_root or environment.get(VARIABLES["insecure_dev_root"]) or None
    return Trust(demands, _load_root(insecure_dev_root) if insecure_dev_root else None)


def _measure(path: str) -> dict[int, bytes]:
    from enclavekit_eif.measure import measure
    from enclavekit_eif.reader import read_eif

    measured = measure(read_eif(path))
    if not measured.crc_ok:
        raise VerificationError(f"EIF {path}", "its CRC does not match: the file is damaged")
    return {0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2}


def _parse_pcrs(texts: list[str]) -> dict[int, bytes]:
    pcrs: dict[int, bytes] = {}
    for text in texts:
        name, _, value = text.partition("=")
        index, expected = parse_pcr(name, value, "--pcr")
        if index in pcrs:
            raise ConfigError("--pcr", name, "it is given twice")
        pcrs[index] = expected
    return pcrs


def _load_root(path: str) -> bytes:
    from enclavekit_attestation.roots import read_insecure_dev_root

    print(
        f"pipeline: warning: {path} is trusted instead of AWS's root: emulation, nothing is confidential",
        file=sys.stderr,
    )
    return read_insecure_dev_root(path)
