# SPDX-License-Identifier: Apache-2.0
"""A nitro-cli for tests: the real one's flags, JSON, exit codes, error texts and log, with a process per enclave.

State is below $FAKE_NITRO_DIR: enclaves/ID.json; `failures`, a JSON list of error numbers for the next launches (0 is
success, a list of two is an inner error and what it ends with); `calls`, one line of JSON per command; `overlaps`,
which appears when two launches were under way at once.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ["FAKE_NITRO_DIR"])
TEXTS = {
    11: "Socket error. This is used as an error indicator for socket-related failures.",
    22: "Insufficient CPUs available. User provided `cpu-count` is 8, which is more than the configured CPU pool size.",
    26: "Insufficient memory requested. User provided `memory` is 64 MB, but the minimum memory should be 1024 MB",
    36: "Enclave boot failure. Such error appears when attempting to receive the `ready` signal from a freshly booted "
    "enclave",
    39: "Enclave process connection failure. Such error appears when the enclave manager fails to connect to at least "
    "one enclave process for retrieving the description information",
    44: "Enclave console connection failure",
}
HOLD = "import signal; signal.pause()"
# an enclave that reports how its app ended and powers off, from a PID namespace of its own: that is what makes it the
# enclave with this CID on the fabric
REPORT = """
import json, os, socket, sys
record, path, report = sys.argv[1:]
with open(record, "w") as out:
    json.dump({"cid": int(os.path.basename(record)[:-5]), "pid_namespace": os.stat("/proc/self/ns/pid").st_ino}, out)
sender = socket.socket(socket.AF_UNIX)
sender.connect(path)
sender.sendall(report.encode() + b"\\n")
sender.shutdown(socket.SHUT_WR)
sender.recv(1)
"""


def fail(number, inner=None, subactions=("Failed to handle all enclave process replies",)):
    log = STATE / "logs" / "err2026-01-01T00:00:00.000000000+00:00.log"
    lines = [
        "  Action: Run Enclave",
        "  Subactions:",
        *(f"    {text}" for text in subactions),
        "  Root error line: 349",
    ]
    log.write_text("\n".join(lines) + "\n")
    for each in filter(None, (inner, number)):
        print(f"[ E{each:02} ] {TEXTS[each]}", file=sys.stderr)
        if each is inner:
            print("Failed connections: 1", file=sys.stderr)
    page = "https://docs.aws.amazon.com/enclaves/latest/user/cli-errors.html"
    print(f"\nFor more details, please visit {page}#E{number:02}", file=sys.stderr)
    print(f'\nIf you open a support ticket, please provide the error log found at "{log}"', file=sys.stderr)
    sys.exit(number)


def enclaves():
    (STATE / "enclaves").mkdir(exist_ok=True)
    found = [json.loads(path.read_text()) for path in sorted((STATE / "enclaves").glob("*.json"))]
    alive = []
    for each in found:
        try:
            stat = Path(f"/proc/{each['ProcessID']}/stat").read_text()
        except FileNotFoundError:
            continue
        if stat.rpartition(")")[2].split()[0] not in "ZX":
            alive.append(each)
    return alive


def run_enclave(args):
    marker = STATE / "launching"
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        (STATE / "overlaps").touch()
    try:
        print("Start allocating memory...", file=sys.stderr, flush=True)
        time.sleep(0.05)  # so that launches that are not kept apart do meet
        launch(args)
    finally:
        marker.unlink(missing_ok=True)
    if args.attach_console:
        print("Connecting to the console for enclave...", flush=True)
        print("Successfully connected to the console.", flush=True)
        print("booting", flush=True)
        report(args.enclave_cid)


def report(cid):
    """With $FAKE_NITRO_REPORT the enclave reports that and ends."""
    if "FAKE_NITRO_REPORT" not in os.environ:
        return
    runtime = os.environ["ENCLAVEKIT_RUNTIME_DIR"]
    words = [f"{runtime}/registry/{cid}.json", f"{runtime}/fabric/3/9002.sock", os.environ["FAKE_NITRO_REPORT"]]
    subprocess.run(["unshare", "-U", "-r", "-p", "-f", sys.executable, "-c", REPORT, *words], check=True)
    for each in enclaves():
        if each["EnclaveCID"] == cid:
            os.kill(each["ProcessID"], signal.SIGTERM)


def launch(args):
    path = STATE / "failures"
    failures = json.loads(path.read_text()) if path.exists() else []
    if failures:
        number, *rest = failures
        path.write_text(json.dumps(rest))
        if isinstance(number, list):
            fail(number[1], inner=number[0])
        if number == 37:
            TEXTS[36] = "Enclave boot failure."
            fail(36, subactions=("Failed to bind the heartbeat socket: Address already in use (os error 98)",))
        if number:
            fail(number)
    if any(each["EnclaveCID"] == args.enclave_cid for each in enclaves()):
        TEXTS[29] = "Ioctl failure: the CID is taken"
        fail(29)
    null = subprocess.DEVNULL
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=null, stdout=null, stderr=null, start_new_session=True, close_fds=True
    )
    serial = f"{time.time_ns():x}"
    described = {
        "EnclaveName": args.enclave_name,
        "EnclaveID": f"i-0123456789abcdef0-enc{serial}",
        "ProcessID": holder.pid,
        "EnclaveCID": args.enclave_cid,
        "NumberOfCPUs": args.cpu_count,
        "CPUIDs": list(range(1, args.cpu_count + 1)),
        "MemoryMiB": args.memory,
    }
    print("Started enclave with enclave-cid: ...", file=sys.stderr)
    print(json.dumps(described, indent=2), flush=True)
    described["State"] = "RUNNING"
    described["Flags"] = "DEBUG_MODE" if args.debug_mode or args.attach_console else "NONE"
    (STATE / "enclaves").mkdir(exist_ok=True)
    (STATE / "enclaves" / f"{described['EnclaveID']}.json").write_text(json.dumps(described))


def terminate(args):
    for each in enclaves():
        if each["EnclaveID"] == args.enclave_id:
            os.kill(each["ProcessID"], signal.SIGTERM)
            print("Successfully terminated enclave.", file=sys.stderr)
            print(json.dumps({"EnclaveID": args.enclave_id, "Terminated": True}, indent=2))
            return
    fail(39)


def console(args):
    print("Connecting to the console for enclave...", flush=True)
    print("Successfully connected to the console.", flush=True)
    print(f"console of {args.enclave_id}", flush=True)


def main():
    parser = argparse.ArgumentParser(prog="nitro-cli")
    parser.add_argument("--version", action="version", version="Nitro CLI 1.4.2")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run-enclave")
    run.add_argument("--eif-path", required=True)
    for name in ("--memory", "--cpu-count", "--enclave-cid"):
        run.add_argument(name, type=int, required=True)
    run.add_argument("--enclave-name")
    run.add_argument("--debug-mode", action="store_true")
    run.add_argument("--attach-console", action="store_true")
    commands.add_parser("describe-enclaves")
    for name in ("terminate-enclave", "console"):
        commands.add_parser(name).add_argument("--enclave-id", required=True)
    args = parser.parse_args()
    with open(STATE / "calls", "a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    if args.command == "describe-enclaves":
        print(json.dumps(enclaves(), indent=2))
        return
    {"run-enclave": run_enclave, "terminate-enclave": terminate, "console": console}[args.command](args)


main()
