# SPDX-License-Identifier: Apache-2.0
"""The command line of the fuzzers: inputs from consecutive seeds for as long as told; the seed that fails is named."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

from enclavekit_core import logs

LONG_S = 3600.0


def main(description: str, run_one: Callable[[int], None]) -> int:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=10, help="how long (10)")
    parser.add_argument("--long", dest="seconds", action="store_const", const=LONG_S, help="an hour")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**48), help="of the first input")
    args = parser.parse_args()
    logs.configure("error")
    begun, seed = time.monotonic(), args.seed
    while time.monotonic() < begun + args.seconds:
        try:
            run_one(seed)
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
        seed += 1
    print(f"{seed - args.seed} inputs from seed {args.seed} in {time.monotonic() - begun:.0f} s, no failure")
    return 0
