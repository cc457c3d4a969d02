# SPDX-License-Identifier: Apache-2.0
"""The process that rbuilds leaves beside each enclave: it starts proxies, rules and enclave as one transaction, stays
until the enclave ends, and takes everything out again.

It is told what to do by one line of JSON on its standard input, a socket: a LaunchPlan under "launch", or a CID under
"adopt" after another supervisor was killed. It answers with lines of JSON (see `front`). As long as the enclave is not
up, the end of that socket means that nobody wants it any more.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import Any

import msgspec
from enclavekit_core.errors import EnclavekitError

from enclavekit_rbuilds.run.front_link import FrontLink
from enclavekit_rbuilds.run.model import LaunchPlan
from enclavekit_rbuilds.run.store import Store
from enclavekit_rbuilds.run.supervisor import Cancelled, Supervisor

MAX_LINE_BYTES = 1 << 20  # a plan with all the rules that an image's metadata may hold


async def supervise(connection: socket.socket) -> None:
    """Do what the first line on `connection` says."""
    front = FrontLink(*await asyncio.open_connection(sock=connection, limit=MAX_LINE_BYTES))
    order = await front.read()
    store = Store()
    adopted = order.get("adopt")
    record = store.read(adopted) if isinstance(adopted, int) else None
    if "launch" not in order and record is None:
        return
    plan = record.plan if record is not None else msgspec.convert(order["launch"], LaunchPlan)
    supervisor = Supervisor(store, plan, front)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.stopping.set)
    answer: dict[str, Any] | None = None
    try:
        if record is not None:
            if not supervisor.adopt(record):
                return
            front.send({"adopted": record.cid})
        else:
            await supervisor.launch()
        await supervisor.watch()
    except Cancelled:
        pass
    except EnclavekitError as exc:
        answer = {"error": str(exc), "exit_code": exc.exit_code, "code": getattr(exc, "code", "")}
    except Exception as exc:
        # the outermost: a bug of ours is one line for the user, its trace in our log
        answer = {"error": f"cannot run {plan.eif}: {type(exc).__name__}: {exc}", "exit_code": 70, "code": ""}
        raise
    finally:
        await supervisor.undo()
        if answer is not None:
            front.send(answer)  # when nothing is left of it
        await front.close()


def main() -> None:
    connection = socket.socket(fileno=os.dup(sys.stdin.fileno()))
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), sys.stdin.fileno())
    os.chdir("/")
    asyncio.run(supervise(connection))


if __name__ == "__main__":
    main()
