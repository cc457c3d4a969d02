# SPDX-License-Identifier: Apache-2.0
"""VRF proofs, beside the same in plain Python (libs/ecvrf/tests/reference.py)."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import ecvrf
from run import Figure

REFERENCE = Path(__file__).resolve().parent.parent / "libs/ecvrf/tests/reference.py"
KEY = bytes(range(1, 33))
ALPHA = b'{"file_path":"/data/model.bin","sha3_hash":"' + b"ab" * 64 + b'"}'  # what file proofs are about
TARGET = "below 1 ms on a free core"
OURS_S, PEER_S, ROUNDS = 0.3, 0.3, 5  # the best of the rounds: other work on the machine only ever adds time


def measure() -> Iterator[Figure]:
    plain = load_reference()
    curves = {
        ecvrf.EDWARDS25519_SHA512_TAI: plain.EDWARDS25519,
        ecvrf.EDWARDS25519_SHA512_ELL2: None,
        ecvrf.P256_SHA256_TAI: plain.P256,
        ecvrf.P256_SHA256_SSWU: None,
        ecvrf.SECP256K1_SHA256_TAI: plain.SECP256K1,
    }
    for suite, curve in curves.items():
        public_key, proof = suite.public_key(KEY), suite.prove(KEY, ALPHA)
        target = TARGET if "EDWARDS" in suite.name else ""
        ours = {
            "prove": time_of(lambda s=suite: s.prove(KEY, ALPHA), OURS_S),
            "verify": time_of(lambda s=suite, k=public_key, p=proof: s.verify(k, ALPHA, p), OURS_S),
        }
        peer: dict[str, float] = {}
        if curve is not None:
            assert plain.prove(curve, KEY, ALPHA) == proof, "the peer does something else"
            peer = {
                "prove": time_of(lambda c=curve: plain.prove(c, KEY, ALPHA), PEER_S),
                "verify": time_of(lambda c=curve, k=public_key, p=proof: plain.verify(c, k, ALPHA, p), PEER_S),
            }
        for what, seconds in ours.items():
            ratio = peer[what] / seconds if peer else None
            name = f"{what}, {suite.name.removeprefix('ECVRF-')}"
            yield Figure(name, seconds * 1000, "ms", target, "plain Python" if peer else "", ratio)


def time_of(work: Callable[[], object], budget_s: float) -> float:
    """Return the seconds that one call takes: the best of some rounds that take `budget_s` together."""
    started = time.perf_counter()
    work()
    once = time.perf_counter() - started
    count = max(1, int(budget_s / ROUNDS / once))
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(count):
            work()
        best = min(best, (time.perf_counter() - started) / count)
    return best


def load_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ecvrf_reference", REFERENCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
