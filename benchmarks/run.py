#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`./dev bench`: run the benchmarks, print their figures with the machine's description, optionally as JSON.

Absolute times on shared machines mean little, so a benchmark that has a peer runs it in the same process of
measurement and gives the ratio; a target is printed beside its figure.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))


@dataclass(frozen=True)
class Figure:
    """One measured value."""

    name: str
    value: float
    unit: str
    target: str = ""
    """What it should be, in words; empty where nothing is asked of it."""
    peer: str = ""
    """What it is compared with."""
    ratio: float | None = None
    """ours / peer's, in the direction in which more is better for us."""


BENCHMARKS = tuple(sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")))


def describe_machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": memory_mib,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default all")
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    machine = describe_machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    figures: list[Figure] = []
    for name in args.names or BENCHMARKS:
        for figure in importlib.import_module(f"bench_{name}").measure():
            figures.append(figure)
            print(format_figure(figure), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "figures": [asdict(f) for f in figures]}, indent=2) + "\n")
    return 0


def format_figure(figure: Figure) -> str:
    line = f"{figure.name:<44} {figure.value:>10.2f} {figure.unit:<6}"
    if figure.ratio is not None:
        line += f"  {figure.ratio:.2f} x {figure.peer}"
    return line + (f"  (target {figure.target})" if figure.target else "")


if __name__ == "__main__":
    sys.modules.setdefault("run", sys.modules["__main__"])  # so that benchmarks import Figure from this very module
    sys.exit(main())
