# SPDX-License-Identifier: Apache-2.0
"""The proxy's own routes and rules in real network namespaces: what they bring, and that they go as they came."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import outside

SCRIPT = Path(__file__).with_name("transparent_in_namespaces.py")
V4, V6, OTHER = "93.184.216.34", "2606:2800:220:1::1", "93.184.216.35"
TIMEOUT_S = 200
EXPECTED = {
    "stream v4": "ping",
    "stream v6": "ping",
    "stream to the listener's port elsewhere": "ping",
    "stream denied": "ConnectionResetError",
    "stream to nobody": "ConnectionResetError",
    "stream to the listener": "ConnectionResetError",
    "datagram v4": f"True from {V4}",
    "datagram v6": f"True from {V6}",
    "longest datagram": f"True from {V4}",
    "empty datagram": f"True from {V4}",
    "datagram denied": "TimeoutError",
    "datagram denied, connected": "ConnectionRefusedError",
    "datagram to nobody": "ConnectionRefusedError",
    "datagram to nobody by IPv6": "ConnectionRefusedError",
    "datagram to the listener": "TimeoutError",
    "name": [OTHER],
    "unknown name": [],
    "datagram by name": f"True from {OTHER}",
}
PROGRAMS = {"nft": ("nft",), "iptables": ("iptables", "ip6tables"), "iptables-legacy": ("iptables-legacy",)}


HOST_SCRIPT = Path(__file__).with_name("host_in_namespaces.py")


@pytest.mark.root
@pytest.mark.parametrize(
    ("backend", "method"),
    [("nft", "redirect"), ("nft", "tproxy"), ("iptables", "redirect"), ("iptables-legacy", "tproxy")],
)
def test_a_proxy_with_its_rules_and_routes(tmp_path, backend, method):
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip", *PROGRAMS[backend]))):
        pytest.skip(f"needs root, unshare, ip and {' and '.join(PROGRAMS[backend])}")
    with outside(SCRIPT, tmp_path):
        argv = ["unshare", "-n", sys.executable, str(SCRIPT), "inside", str(tmp_path), backend, method]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["clients"] == EXPECTED
    assert results["second"] == [5, 1]  # a running proxy's rules are not for others to replace
    assert results["during"] != results["before"]
    assert set(results["before"]) < set(results["during"])  # nothing of others has gone
    assert results["after"] == results["before"]
    assert results["killed"] == results["during"]
    assert results["again"] == results["during"]  # replaced, not doubled
    assert results["client again"] == "ping"
    assert results["after again"] == results["before"]


@pytest.mark.root
@pytest.mark.parametrize("method", ["redirect", "tproxy"])
def test_a_host_diverts_what_comes_to_it_and_its_own_but_never_the_proxys(tmp_path, method):
    """The proxy's upstream is at an address that is diverted: with a loop nobody would ever be served."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "nsenter", "ip", "nft"))):
        pytest.skip("needs root, unshare, nsenter, ip and nft")
    with subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        client.stdin.write(b"?")
        client.stdin.flush()
        client.stdout.read(1)  # it is in its namespace
        argv = ["unshare", "-n", sys.executable, str(HOST_SCRIPT), str(tmp_path), method, str(client.pid)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        client.stdin.close()
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results.pop("seen") == ["stream"] * 3 + ["datagram"] * 3 + ["stream"]
    assert (results.pop("exit"), results.pop("left"), results.pop("rule")) == (0, "", True)
    assert {name: what.partition(" ")[2] for name, what in results.items()} == dict.fromkeys(results, "served")
