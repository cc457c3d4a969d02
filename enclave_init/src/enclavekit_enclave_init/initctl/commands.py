# SPDX-License-Identifier: Apache-2.0
"""The commands of initctl as a table: arguments, the requests that they make, what each prints."""

from __future__ import annotations

import argparse
import json
import re
import select
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from enclavekit_core.address import CID_ANY, CID_PARENT, VsockAddress
from enclavekit_core.errors import InputError, TransportError
from enclavekit_core.exit_report import printable
from enclavekit_core.streams import Listener

from enclavekit_enclave_init.initctl import views
from enclavekit_enclave_init.initctl.client import Client

Show = Callable[[Mapping[str, Any]], list[str]]
DEFAULT_STREAM_PORT = 9100
STREAM_CONNECT_S = 10.0  # PID 1 connects before it answers, or at once after
STREAM_WAIT_S = 2.0  # of logs-stream without --follow, as the Rust initctl has it
AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Argument:
    """What argparse takes."""

    names: tuple[str, ...]
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Command:
    """One command; with a verb it makes that request, with the arguments as fields."""

    help: str
    arguments: tuple[Argument, ...] = ()
    verb: str = ""
    show: Show | None = None
    run: Callable[[Client, argparse.Namespace], int] | None = None
    """Instead of one request; makes the requests in `verbs`."""
    verbs: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def _argument(*names: str, **settings: Any) -> Argument:
    return Argument(names, settings)


def print_answer(answer: Mapping[str, Any], args: argparse.Namespace, show: Show) -> None:
    if args.json:
        print(json.dumps(answer, indent=2))
        return
    for line in show(answer):
        print(line)


def _message(answer: Mapping[str, Any]) -> list[str]:
    return [printable(str(answer.get("message", "done")))]


# commands that are more than a request ------------------------------------------------------------------------


def run_status(client: Client, args: argparse.Namespace) -> int:
    if args.name is None:
        print_answer(client.request("SystemTree"), args, lambda answer: views.service_tree(answer["units"]))
        return 0
    answer = client.request("ServiceStatus", name=args.name)
    print_answer(answer, args, lambda answer: views.service_status(answer["status"]))
    return 0


def run_reload(client: Client, args: argparse.Namespace) -> int:
    request = ("SystemReload", {}) if args.name is None else ("ServiceReload", {"name": args.name})
    print_answer(client.request(request[0], **request[1]), args, _message)
    return 0


def run_enable(client: Client, args: argparse.Namespace) -> int:
    answer = client.request("ServiceEnable", name=args.name)
    if args.now:
        answer = client.request("ServiceStart", name=args.name)
    print_answer(answer, args, _message)
    return 0


def run_logs(client: Client, args: argparse.Namespace) -> int:
    units = [*args.names, *args.unit]
    since = parse_since(args.since, time.time()) if args.since else 0.0
    lines = args.lines if args.lines is not None else (100_000 if args.since else 50)
    for kind, answer in client.stream("Logs", units=units, lines=lines, since=since, follow=args.follow):
        if kind == "End":
            break
        for line in answer["lines"]:
            print(json.dumps(line, ensure_ascii=False) if args.json else views.log_line(line))
        sys.stdout.flush()
    return 0


def parse_since(text: str, now_s: float) -> float:
    """Return the Unix time that `text` means: 90s, 5m, 2h, 1d ago, a Unix time, or ISO 8601. Raises InputError."""
    if match := re.fullmatch(r"(\d{1,9})([smhd])", text):
        return max(0.0, now_s - int(match[1]) * AGES[match[2]])
    try:
        return float(text) if re.fullmatch(r"\d{1,11}(\.\d*)?", text) else datetime.fromisoformat(text).timestamp()
    except ValueError as exc:
        raise InputError("use --since", repr(text), "it is neither an age (90s, 5m, 2h, 1d) nor a time") from exc


def run_logs_stream(client: Client, args: argparse.Namespace) -> int:
    """Listen, have PID 1 connect, and print what comes."""
    address = VsockAddress(args.listen_cid, args.listen_port)
    out = open(args.output, "wb") if args.output else sys.stdout.buffer  # noqa: SIM115 - closed below
    try:
        with Listener(address, backlog=1) as listener:
            client.request("ServiceLogsStream", name=args.name, vsock_cid=CID_PARENT, vsock_port=args.listen_port)
            listener.socket.settimeout(STREAM_CONNECT_S)
            try:
                sock, _ = listener.accept()
            except TimeoutError as exc:
                raise TransportError("accept on", str(address), "PID 1 has not connected") from exc
        with sock:
            deadline = None if args.follow else time.monotonic() + STREAM_WAIT_S
            while deadline is None or (left := deadline - time.monotonic()) > 0:
                if deadline is not None and not select.select([sock], [], [], left)[0]:
                    break
                data = sock.recv(65536)
                if not data:
                    break
                out.write(data)
                out.flush()
    finally:
        if out is not sys.stdout.buffer:
            out.close()
    return 0


def run_top(client: Client, args: argparse.Namespace) -> int:
    """Show processes by the CPU that they have used since the last look."""
    before: dict[int, float] = {}
    looked = 0.0
    rounds = 0
    while True:
        processes = client.request("ProcessList")["processes"]
        now = time.monotonic()
        cpu = {}
        for one in processes:
            spent = one["cpu_seconds"] - before.get(one["pid"], one["cpu_seconds"] if looked else 0.0)
            # at the first look there is no last one: then over its life, as ps has it
            cpu[one["pid"]] = 100 * spent / (now - looked) if looked else one["cpu_percent"]
        before, looked = {one["pid"]: one["cpu_seconds"] for one in processes}, now
        processes.sort(key=lambda one: (-cpu[one["pid"]], -one["memory_kb"]))
        if args.json:
            print(json.dumps([{**one, "cpu_percent": round(cpu[one["pid"]], 1)} for one in processes]))
        else:
            if sys.stdout.isatty():
                print("\033[H\033[2J", end="")
            print("\n".join(views.process_list(processes, cpu)))
        sys.stdout.flush()
        rounds += 1
        if args.rounds and rounds >= args.rounds:
            return 0
        time.sleep(args.delay)


def run_ps_start(client: Client, args: argparse.Namespace) -> int:
    answer = client.request("ProcessStart", command=args.command, args=args.args, env=args.env)
    print_answer(answer, args, _message)
    return 0


def run_health(client: Client, args: argparse.Namespace) -> int:
    answer = client.request("SystemHealth")
    print_answer(answer, args, views.health)
    return 0 if answer["ready"] and answer["live"] else 1


NAME = _argument("name", metavar="SERVICE")
PID = _argument("pid", metavar="PID", type=int)
SIGNAL = _argument("-s", "--signal", type=int, default=15, metavar="N", help="default: %(default)s")

COMMANDS: dict[str, Command] = {
    "list": Command("list units", (), "ListServices", lambda a: views.service_list(a["services"])),
    "status": Command(
        "show all units as a tree with dependencies and last exit, or one unit",
        (_argument("name", metavar="SERVICE", nargs="?"),),
        run=run_status,
        verbs=("SystemTree", "ServiceStatus"),
    ),
    "start": Command("start a unit and what it requires; returns when it is up", (NAME,), "ServiceStart", _message),
    "stop": Command("stop a unit; returns when it is down", (NAME,), "ServiceStop", _message),
    "restart": Command("stop a unit and start it; returns when it is up", (NAME,), "ServiceRestart", _message),
    "reload": Command(
        "read the unit files anew, what runs goes on; with SERVICE: run its ExecReload",
        (_argument("name", metavar="SERVICE", nargs="?"),),
        run=run_reload,
        verbs=("SystemReload", "ServiceReload"),
    ),
    "kill": Command("signal the processes of a unit", (NAME, SIGNAL), "ServiceKill", _message),
    "enable": Command(
        "let a unit start at boot",
        (NAME, _argument("--now", action="store_true", help="start it as well")),
        run=run_enable,
        verbs=("ServiceEnable", "ServiceStart"),
    ),
    "disable": Command("do not let it start at boot, and stop it", (NAME,), "ServiceDisable", _message),
    "logs": Command(
        "show the last lines of units; of all, PID 1 and kernel included, if none is named",
        (
            _argument("names", metavar="SERVICE", nargs="*"),
            _argument("-u", "--unit", action="append", default=[], metavar="SERVICE", help="the same; repeatable"),
            _argument("-n", "--lines", type=int, metavar="N", help="default: 50; with --since all"),
            _argument("-f", "--follow", action="store_true", help="go on with what comes"),
            _argument("--since", metavar="WHEN", help="an age (90s, 5m, 2h, 1d) or a time"),
        ),
        run=run_logs,
        verbs=("Logs",),
    ),
    "logs-clear": Command("remove a unit's log", (NAME,), "ServiceLogsClear", _message),
    "logs-stream": Command(
        "on the parent: have the enclave send a unit's log here, unencrypted",
        (
            NAME,
            _argument("--listen-cid", type=int, default=CID_ANY, metavar="CID", help="default: any"),
            _argument("--listen-port", type=int, default=DEFAULT_STREAM_PORT, metavar="PORT", help="%(default)s"),
            _argument("-o", "--output", metavar="FILE", help="write there"),
            _argument("-f", "--follow", action="store_true", help="until it ends; default: 2 seconds"),
        ),
        run=run_logs_stream,
        verbs=("ServiceLogsStream",),
    ),
    "top": Command(
        "show processes by the CPU that they use",
        (
            _argument("-n", "--rounds", type=int, default=0, metavar="N", help="default: until it is interrupted"),
            _argument("-d", "--delay", type=float, default=2.0, metavar="S", help="default: %(default)s"),
        ),
        run=run_top,
        verbs=("ProcessList",),
    ),
    "analyze": Command("show what the boot took, by step and unit", (), "SystemAnalyze", views.analysis),
    "health": Command(
        "show who is ready and who lives; exit 1 unless all are", run=run_health, verbs=("SystemHealth",)
    ),
    "metrics": Command("print metrics for Prometheus", (), "SystemMetrics", lambda a: a["text"].splitlines()),
    "system-status": Command(
        "show counts, uptime, directories", (), "SystemStatus", lambda a: views.pairs(a["status"])
    ),
    "ping": Command("ask whether PID 1 answers", (), "Ping", lambda a: ["pong"]),
    "shutdown": Command("stop everything in order, then end the enclave", (), "SystemShutdown", _message),
    "reboot": Command("stop everything in order, then restart", (), "SystemReboot", _message),
    "poweroff": Command("kill everything and end the enclave now", (), "SystemPowerOff", _message),
}
PS_COMMANDS: dict[str, Command] = {
    "list": Command("list processes", (), "ProcessList", lambda a: views.process_list(a["processes"])),
    "status": Command("show a process", (PID,), "ProcessStatus", lambda a: views.pairs(a["process"])),
    "start": Command(
        "run a program",
        (
            _argument("-e", "--env", action="append", default=[], metavar="K=V", help="repeatable"),
            _argument("command", metavar="COMMAND"),
            _argument("args", metavar="ARG", nargs=argparse.REMAINDER),
        ),
        run=run_ps_start,
        verbs=("ProcessStart",),
        aliases=("run",),
    ),
    "stop": Command("SIGTERM to a child of PID 1", (PID,), "ProcessStop", _message),
    "restart": Command("restart the unit whose main process it is", (PID,), "ProcessRestart", _message),
    "kill": Command("signal a child of PID 1", (PID, SIGNAL), "ProcessKill", _message),
}
