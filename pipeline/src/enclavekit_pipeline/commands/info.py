# SPDX-License-Identifier: Apache-2.0
"""`pipeline info`: what an enclave proves and says about itself."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping

from enclavekit_pipeline.commands.target import add_target_flags, make_target

HELP = "say what an enclave is, what it grants you and what its limits are"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_flags(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("enclave", metavar="ENCLAVE", help="CID, name or id")


def run(args: argparse.Namespace) -> int:
    facts = asyncio.run(ask(args))
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(format_facts(facts)))
    return 0


async def ask(args: argparse.Namespace) -> dict[str, object]:
    """Return what the document proves under `attested`, and what the enclave says beside it."""
    import msgspec

    from enclavekit_pipeline.host.session import connected
    from enclavekit_pipeline.wire.frames import Kind
    from enclavekit_pipeline.wire.info_messages import Info, InfoRequest

    async with connected(make_target(args, args.enclave)) as session:
        info = await session.ask(InfoRequest(), Kind.INFO, Info)
        verified = session.verified
    attested = {
        "module_id": verified.module_id,
        "debug": verified.debug,
        "development_root": verified.development_root,
        "pcrs": {str(index): value.hex() for index, value in verified.pcrs.items() if any(value)},
    }
    return {"attested": attested, **msgspec.to_builtins(info)}


def format_facts(facts: Mapping[str, object], prefix: str = "") -> list[str]:
    """Return a line for each fact; names of nested ones are joined by a dot. An enclave's words stay on their line."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            lines += format_facts(value, f"{prefix}{name}.")
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        lines.append("".join(char if char.isprintable() else "?" for char in f"{prefix}{name}: {shown}"))
    return lines
