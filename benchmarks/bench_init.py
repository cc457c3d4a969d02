# SPDX-License-Identifier: Apache-2.0
"""PID 1's boot time against the number of services, its memory, what it does when idle: in namespaces of its own with
1, 10 and 100 services, and in the process machine with those of the demo's image.

Its own time is the processor time of PID 1 itself (utime and stime of its /proc/PID/stat), not what the services take.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import bench_enclave
import enclavekit_enclave_init
from run import Figure

ROOT = Path(__file__).resolve().parent.parent
ENTER = ROOT / "enclave_init/tests/enter_machine.py"
STUB = Path(enclavekit_enclave_init.__file__).with_name("init_stub")
CID = 16
ROUNDS = 3
IDLE_S = 3
SETTLE_S = 3  # the demo's services, once up, have things of their own to do
DEMO = {"app", "fs-monitor", "nats", "pipeline", "ra-web-srv"}  # and two that end when they have done their work
HERTZ = os.sysconf("SC_CLK_TCK")
PYTHON = os.path.realpath(sys.executable)
# runs when all others are up; looks at PID 1 now, and again after a while in which nothing happens
WATCHER = f"""
import time
def own(): return [int(w) for w in open('/proc/1/stat').read().rpartition(')')[2].split()[11:13]]
def field(name): return int(next(l.split()[1] for l in open('/proc/1/status') if l.startswith(name)))
ready, up = sum(own()), float(open('/proc/uptime').read().split()[0])
started = int(open('/proc/1/stat').read().rpartition(')')[2].split()[19]) / {HERTZ}
time.sleep(1)
wakes, used = field('voluntary_ctxt_switches'), sum(own())
time.sleep({IDLE_S})
print('figures', ready / {HERTZ}, up - started, field('VmRSS'), sum(own()) - used,
      field('voluntary_ctxt_switches') - wakes, flush=True)
"""


def measure() -> Iterator[Figure]:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        raise SystemExit("bench init: needs root and unshare(1)")
    for count in (1, 10, 100):
        rounds = [boot(count) for _ in range(ROUNDS)]
        yield from figures(f"{count} services", rounds, "")
    yield from figures("the demo's five", boot_demo(), "under 1 s")


def figures(what: str, rounds: list[list[float]], target: str) -> Iterator[Figure]:
    own, wall, rss, idle_ticks, wakes = (min(values) for values in zip(*rounds, strict=True))
    yield Figure(f"init: own time until {what} run", own, "s", target)
    yield Figure(f"init: from its start until {what} run", wall, "s")
    yield Figure(f"init: resident with {what}", rss / 1024, "MiB", target="under 25 MB")
    yield Figure(f"init: idle for {IDLE_S} s with {what}", idle_ticks / HERTZ, "s", target="zero")
    yield Figure(f"init: wake-ups in these {IDLE_S} s", wakes, "", target="zero")


def boot_demo() -> list[list[float]]:
    """Boot the demo's image ROUNDS times; a row for each, as `boot` gives."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-init-") as name:
        directory, app = Path(name), bench_enclave.APP
        bench_enclave.run(directory, app / "make_rootfs", "rootfs")
        bench_enclave.run(directory, "pipeline", "keygen", "--name", "bench", "-o", "keys")
        build = ("rbuilds", "build", "--rootfs", "rootfs", "--config", app / "enclave.yaml")
        bench_enclave.run(directory, *build, "--authorize", "keys/bench.crt:all,control", "--output", "bench.eif")
        root = bench_enclave.run(directory, "nitro-emu", "dev-root").strip()
        trust = ("--eif", "bench.eif", "--identity", "keys/bench", "--insecure-dev-root", root)
        run_enclave = ("nitro-emu", "run-enclave", "--eif-path", "bench.eif", "--memory", 1024, "--cpu-count", 2)
        for _ in range(ROUNDS):
            enclave = json.loads(bench_enclave.run(directory, *run_enclave))
            try:
                ask = ("initctl", "--enclave", enclave["EnclaveName"], *trust, "--json")
                while True:  # its gateway comes up with the others
                    done = subprocess.run([*ask, "analyze"], cwd=directory, capture_output=True, text=True)
                    times = json.loads(done.stdout) if done.returncode == 0 else {"units": [], "up_ms": None}
                    if times["up_ms"] is not None and {unit["name"] for unit in times["units"]} >= DEMO:
                        break
                    time.sleep(0.2)
                pid = bench_enclave.first_child(enclave["ProcessID"])
                time.sleep(SETTLE_S)
                rss, used, wakes = look(pid)
                time.sleep(IDLE_S)
                _, used_then, wakes_then = look(pid)
                idle = [used_then - used, wakes_then - wakes]
                rows.append([times["own_ms"] / 1000, times["up_ms"] / 1000, rss, *idle])
            finally:
                bench_enclave.run(directory, "nitro-emu", "terminate-enclave", "--enclave-id", enclave["EnclaveID"])
    return rows


def look(pid: int) -> tuple[float, float, float]:
    """Return a process's resident KiB, its ticks of processor time and how often it has woken up."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.partition(":")[0]: line.split()[1] for line in status if len(line.split()) > 1}
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return int(fields["VmRSS"]), sum(map(int, ticks)), int(fields["voluntary_ctxt_switches"])


def boot(count: int) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-init-") as name:
        base = Path(name)
        image, out, runtime, root = (base / part for part in ("image", "out", "rt", "root"))
        for path in (image / "service", image / "etc", out, root, runtime / "registry"):
            path.mkdir(parents=True)
        (runtime / "registry/self.json").write_text(json.dumps({"cid": CID}))
        (image / "etc/init.toml").write_text("[vsock]\nenabled = false\n")
        stub = STUB.read_text().replace("/usr/lib/enclavekit", "/enclavekit").replace("/usr/bin/python3", PYTHON)
        (image / "init").write_text(stub)
        (image / "init").chmod(0o755)
        for number in range(count):
            (image / f"service/s{number}.service").write_text("ExecStart = 'sleep 100000'\n")
        names = [f"s{number}" for number in range(count)]
        watcher = json.dumps([PYTHON, "-IS", "-c", WATCHER])
        (image / "service/watcher.service").write_text(
            f"ExecStart = {watcher}\nOnExit = 'poweroff'\nAfter = {json.dumps(names)}\n"
        )
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc", sys.executable]
        command += [str(ENTER), str(root), str(image), str(out), str(runtime)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        killer = threading.Timer(120, process.kill)
        killer.start()
        try:
            assert process.stderr is not None
            lines = process.stderr.read().decode(errors="replace").splitlines()
            process.wait()
        finally:
            killer.cancel()
        found = [line for line in lines if line.startswith("watcher: figures ")]
        if not found:
            raise SystemExit("bench init: the enclave did not come up\n" + "\n".join(lines[-20:]))
        return [float(word) for word in found[0].split()[2:]]
