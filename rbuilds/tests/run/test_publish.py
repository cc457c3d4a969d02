# SPDX-License-Identifier: Apache-2.0
"""nftables rules of enclaves, in a network namespace of the test's own with a second one for the outside."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from enclavekit_rbuilds.run.model import Publish
from enclavekit_rbuilds.run.rules import render_removal, render_rules

from .conftest import HEARTBEAT, ORDERLY, STAY

SERVE = "enclave_network serve 8080 0 &"
PATIENCE_S = 120
SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
# the outside is a second namespace at the other end of a veth pair; both go with their last process
INSIDE = r"""
set -eu
ip link set lo up
unshare -n sleep 600 &
outside=$!
trap 'kill $outside' EXIT
while [ "$(readlink /proc/$outside/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do :; done
ip link add host0 type veth peer name out0 netns $outside
ip addr add 192.0.2.1/24 dev host0
ip link set host0 up
nsenter -t $outside -n ip addr add 192.0.2.2/24 dev out0
nsenter -t $outside -n ip link set out0 up
export OUTSIDE=$outside
"$@"
"""
STORY = r"""
import json, os, signal, socket, subprocess, sys, time

RBUILDS = [sys.executable, "-c", "import sys; from enclavekit_rbuilds.cli import main; sys.exit(main())"]
ASK = "import socket, sys; c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); print(c.recv(99).decode())"

def rbuilds(*words, status=0):
    done = subprocess.run([*RBUILDS, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
    return done

def ask(address, port, *prefix):
    done = subprocess.run([*prefix, sys.executable, "-c", ASK, address, str(port)], capture_output=True, text=True)
    return done.stdout.strip()

def tables():
    listed = json.loads(subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, check=True).stdout)
    return sorted(each["table"]["name"] for each in listed["nftables"] if "table" in each)

def eventually(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)

outside = ("nsenter", "-t", os.environ["OUTSIDE"], "-n")
image = sys.argv[1]
said = {}

# a loopback proxy: from this machine, not from outside
rbuilds("run", image, "--publish", "80:18080", "--publish", "9000-9002:18080")
said["tables"] = tables()
eventually(lambda: ask("127.0.0.1", 18080) == "inside")
said["loopback"] = [ask("127.0.0.1", port) for port in (80, 9000, 9002, 9003)]
said["loopback from outside"] = ask("192.0.2.1", 80, *outside)

# another one with the same host port is refused whole, with another it is let in
taken = rbuilds("run", image, "--bind", "192.0.2.1", "--publish", "9001:18080", status=5)
said["refused"] = taken.stderr.count("rbuilds: cannot ")
said["after refusal"] = [len(json.loads(rbuilds("list", "--json").stdout)), tables()]
rbuilds("run", image, "--bind", "192.0.2.1", "--publish", "443:18080")
eventually(lambda: ask("192.0.2.1", 18080) == "inside")
said["bound from outside"] = ask("192.0.2.1", 443, *outside)
said["bound from here"] = ask("192.0.2.1", 443)
said["two tables"] = tables()

# the first one goes, the other's rules stay
rbuilds("drop", "127")
said["after drop"] = [tables(), ask("127.0.0.1", 80), ask("192.0.2.1", 443, *outside)]

# everything is killed: the next command takes the rules out
[row] = json.loads(rbuilds("list", "--json").stdout)
record = json.load(open(os.path.join(os.environ["ENCLAVEKIT_RUNTIME_DIR"], "rbuilds", f"{row['cid']}.json")))
for pid in (record["supervisor"]["pid"], row["pid"]):
    os.kill(pid, signal.SIGKILL)
def gone(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True
eventually(lambda: gone(record["supervisor"]["pid"]) and gone(row["pid"]))
said["killed"] = tables()
rbuilds("list")
said["cleared up"] = tables()

# all addresses
rbuilds("run", image, "--bind", "0.0.0.0", "--publish", "80:18080")
eventually(lambda: ask("127.0.0.1", 18080) == "inside")
said["any"] = [ask("127.0.0.1", 80), ask("192.0.2.1", 80, *outside)]
rbuilds("drop", "--all")

# a host port that a server has is never taken from it
with socket.create_server(("0.0.0.0", 81)):
    said["hijack"] = rbuilds("run", image, "--publish", "80-82:18080", status=2).stderr.count("rbuilds: cannot ")
said["left"] = [tables(), json.loads(rbuilds("list", "--json").stdout)]
print(json.dumps(said))
"""


def need_nftables(environment):
    if os.geteuid() != 0:
        pytest.skip("a network namespace with a veth pair needs root")
    for program in ("nft", "ip", "unshare", "nsenter"):
        if shutil.which(program, path=environment["PATH"]) is None:
            pytest.skip(f"{program} is not installed")
    argv = ["unshare", "-n", "nft", "add", "table", "ip", "probe"]
    probe = subprocess.run(argv, env=environment, capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no nftables in a network namespace here: {probe.stderr.strip()}")


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.0.0.2", "::1", "0.0.0.0", "::", "10.0.0.5", "fd00::5"])
def test_every_script_is_one_that_the_kernel_takes_twice(tmp_path, bind):
    environment = {**os.environ, "PATH": SEARCH}
    need_nftables(environment)
    script = tmp_path / "rules.nft"
    script.write_text(render_rules(127, bind, [Publish(80, 80, 8080), Publish(9000, 9100, 8080)]))
    (tmp_path / "removal.nft").write_text(render_removal(127) + "\n")
    story = (
        f"nft -f {script} && nft -f {script} && nft list tables && nft -f {tmp_path}/removal.nft && nft list ruleset"
    )
    done = subprocess.run(["unshare", "-n", "sh", "-c", story], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["table", "ip6" if ":" in bind else "ip", "enclavekit_127"]


def test_rules_live_and_die_with_their_enclave(host, make_image, tmp_path):
    environment = {**host.environment, "PATH": SEARCH}
    need_nftables(environment)
    image = make_image(ORDERLY, SERVE, HEARTBEAT, STAY, network={"ingress": [{"port": 18080, "vsock_port": 8080}]})
    (tmp_path / "story.py").write_text(STORY)
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", INSIDE, "sh", sys.executable, tmp_path / "story.py", image],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "tables": ["enclavekit_127"],
        "loopback": ["inside", "inside", "inside", ""],
        "loopback from outside": "",
        "refused": 1,
        "after refusal": [1, ["enclavekit_127"]],
        "bound from outside": "inside",
        "bound from here": "inside",
        "two tables": ["enclavekit_127", "enclavekit_128"],
        "after drop": [["enclavekit_128"], "", "inside"],
        "killed": ["enclavekit_128"],
        "cleared up": [],
        "any": ["inside", "inside"],
        "hijack": 1,
        "left": [[], []],
    }
