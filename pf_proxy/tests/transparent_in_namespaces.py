# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces that share nothing but a fabric directory: servers outside, and an enclave whose own proxy
makes routes and rules.

`outside DIRECTORY` serves echoes; `inside DIRECTORY BACKEND METHOD` runs clients against them and prints as JSON what
became of each, and what the kernel had before, meanwhile and afterwards.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading

from egress_in_namespaces import PROXY, ip, proxy

V4, V6, OTHER = "93.184.216.34", "2606:2800:220:1::1", "93.184.216.35"
PORT, CLOSED = 7007, 7008
OUTSIDE = """
listeners:
- {mode: vsock-to-ip, listen: 'any:8053', upstream: '127.0.0.1:53'}
- {mode: vsock-to-ip-transparent, listen: 'any:8888'}
"""
INSIDE = """
policy: policy.yaml
dns: {listen: '127.0.0.1:5353', upstreams: ['parent:8053']}
rules: {backend: %s, divert_dns: true}
network: {default_route: lo}
listeners:
- {mode: ip-to-vsock-transparent, listen: '[::]:8888', upstream: 'parent:8888', divert: {method: %s}}
- {mode: ip-to-vsock-transparent, listen: '[::]:8888', upstream: 'parent:8888', protocol: udp, divert: {}}
"""
POLICY = f"""
allow:
- {{network: {V4}, ports: [{PORT}, {CLOSED}, 8888]}}
- {{network: '{V6}', ports: [{PORT}]}}
- {{network: {V4}, ports: [{PORT}, {CLOSED}], protocol: udp}}
- {{network: '{V6}', ports: [{PORT}, {CLOSED}], protocol: udp}}
- {{name: named.example, ports: [{PORT}], protocol: udp, absent_name: true}}
"""
FOREIGN = {
    "nft": [["nft", "add table inet foreign; add chain inet foreign out { type filter hook output priority 0; }"]],
    "iptables": [["iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "9", "-j", "ACCEPT"]],
}
FOREIGN["iptables-legacy"] = FOREIGN["iptables"]
PATIENCE_S, UNANSWERED_S = 20.0, 1.0


def family_of(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def outside(directory):
    ip("link set lo up", f"addr add {V4}/32 dev lo", f"addr add {OTHER}/32 dev lo", f"addr add {V6}/128 dev lo nodad")
    for host in (V4, V6, OTHER):
        listener = socket.create_server((host, PORT), family=family_of(host))
        threading.Thread(target=echo_streams, args=(listener,), daemon=True).start()
        datagrams = socket.socket(family_of(host), socket.SOCK_DGRAM)
        datagrams.bind((host, PORT))
        threading.Thread(target=echo_datagrams, args=(datagrams,), daemon=True).start()
    same_port = socket.create_server((V4, 8888))
    threading.Thread(target=echo_streams, args=(same_port,), daemon=True).start()
    resolver = socket.create_server(("127.0.0.1", 53))
    threading.Thread(target=resolve, args=(resolver,), daemon=True).start()
    with proxy(directory, "outside.yaml", OUTSIDE, 2):
        print("ready", flush=True)
        sys.stdin.read()


def echo_streams(listener):
    while True:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(sock.recv(100))


def echo_datagrams(sock):
    while True:
        data, sender = sock.recvfrom(65535)
        sock.sendto(data, sender)


def resolve(listener):
    import dns.message
    import dns.rrset

    while True:
        sock, _ = listener.accept()
        with sock:
            query = dns.message.from_wire(sock.recv(int.from_bytes(sock.recv(2), "big"), socket.MSG_WAITALL))
            reply, asked = dns.message.make_response(query), query.question[0]
            if dns.rdatatype.to_text(asked.rdtype) == "A":
                reply.answer.append(dns.rrset.from_text(asked.name.to_text(), 60, "IN", "A", OTHER))
            wire = reply.to_wire()
            sock.sendall(len(wire).to_bytes(2, "big") + wire)


def ask_stream(host, port=PORT):
    with socket.socket(family_of(host)) as sock:
        sock.settimeout(PATIENCE_S)
        try:
            sock.connect((host, port))
            sock.sendall(b"ping")
            return sock.recv(100).decode()
        except OSError as exc:
            return type(exc).__name__


def ask_datagram(host, port=PORT, data=b"ping", patience_s=PATIENCE_S):
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as sock:
        sock.settimeout(patience_s)
        sock.sendto(data, (host, port))
        try:
            answer, sender = sock.recvfrom(65535)
        except OSError as exc:
            return type(exc).__name__
        return f"{answer == data} from {sender[0]}"


def ask_connected(host, port=PORT):
    """Say what a socket hears that has one peer: the kernel tells it of ICMP messages."""
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((host, port))
        sock.send(b"ping")
        try:
            return sock.recv(65535).decode()
        except OSError as exc:
            return type(exc).__name__


def ask_name(name, resolver):
    import dns.message
    import dns.query

    answer = dns.query.udp(dns.message.make_query(name, "A"), resolver, timeout=PATIENCE_S)
    return [record.to_text() for found in answer.answer for record in found]


def kernel_state():
    """Everything of the kind that a proxy puts in; of iptables not the tables that are made by looking at them."""
    said = []
    programs = [["nft", "-s", "list", "ruleset"]] if BACKEND == "nft" else [["iptables-save"], ["ip6tables-save"]]
    routing = (["rule"], ["route", "show", "table", "all"])
    for argv in (*programs, *(["ip", version, *what] for version in ("-4", "-6") for what in routing)):
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            is_built_in = line.startswith(":") and " - [" not in line
            if not (line.startswith(("#", "*")) or line == "COMMIT" or is_built_in):
                said.append(line.partition(" [")[0])  # chains count packets
    return said


def inside(directory, method):
    with open(f"{directory}/policy.yaml", "w") as out:
        out.write(POLICY)
    if BACKEND == "iptables-legacy":
        use_legacy(directory)
    for argv in FOREIGN[BACKEND]:
        subprocess.run(argv, check=True)
    config = INSIDE % (BACKEND.partition("-")[0], method)
    ip("link set lo up")  # which stays; its addresses and routes come with it
    results = {"before": kernel_state()}
    with proxy(directory, "inside.yaml", config, 2) as first:
        results["during"] = kernel_state()
        results["clients"] = run_clients()
        again = subprocess.run([*PROXY, "rules", "apply", f"{directory}/inside.yaml"], capture_output=True, text=True)
        results["second"] = [again.returncode, again.stderr.count("\n")]
    results["after"] = kernel_state()
    with proxy(directory, "inside.yaml", config, 2) as first:
        first.process.kill()
        first.process.wait()
        results["killed"] = kernel_state()
    wait_for_port_free()
    with proxy(directory, "inside.yaml", config, 2):
        results["again"] = kernel_state()
        results["client again"] = ask_stream(V4)
    results["after again"] = kernel_state()
    print(json.dumps(results))


def use_legacy(directory):
    """Have the programs that know no nf_tables be the ones that are found."""
    for name in ("iptables", "ip6tables"):
        for verb in ("", "-save", "-restore"):
            os.symlink(shutil.which(f"{name}-legacy{verb}"), f"{directory}/{name}{verb}")
    os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"


def wait_for_port_free():
    """The killed proxy's workers end by themselves."""
    while True:
        with socket.socket(socket.AF_INET6) as sock, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("::", 8888))
                sock.listen()
                datagrams.bind(("::", 8888))
                return
            except OSError:
                continue


def run_clients():
    return {
        "stream v4": ask_stream(V4),
        "stream v6": ask_stream(V6),
        "stream to the listener's port elsewhere": ask_stream(V4, 8888),
        "stream denied": ask_stream(OTHER),
        "stream to nobody": ask_stream(V4, CLOSED),
        "stream to the listener": ask_stream("127.0.0.1", 8888),
        "datagram v4": ask_datagram(V4),
        "datagram v6": ask_datagram(V6),
        "longest datagram": ask_datagram(V4, data=os.urandom(65507)),
        "empty datagram": ask_datagram(V4, data=b""),
        "datagram denied": ask_datagram(OTHER, patience_s=UNANSWERED_S),
        "datagram denied, connected": ask_connected(OTHER),
        "datagram to nobody": ask_connected(V4, CLOSED),
        "datagram to nobody by IPv6": ask_connected(V6, CLOSED),
        "datagram to the listener": ask_datagram("127.0.0.1", 8888, patience_s=UNANSWERED_S),
        "name": ask_name("named.example", "192.0.2.53"),
        "unknown name": ask_name("unknown.example", "192.0.2.53"),
        "datagram by name": ask_datagram(OTHER),
    }


if __name__ == "__main__":
    if sys.argv[1] == "outside":
        outside(sys.argv[2])
    else:
        BACKEND = sys.argv[3]
        inside(sys.argv[2], sys.argv[4])
