# SPDX-License-Identifier: Apache-2.0
"""What an app, the world's resolver or both might try to get past the policy: in real namespaces, over real sockets."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .test_egress import PUBLIC, SCRIPT, TIMEOUT_S, namespaces  # noqa: F401 - a fixture

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/pf-proxy-policy.md"
GOOD = f"{PUBLIC} for good.example"
# everything that is to work; whatever is not here is to fail
WORKS = {
    "public and private in one answer": PUBLIC,
    "a neighbour of poisoned records": PUBLIC,
    "answer after its time": PUBLIC,
    "a name in capitals": PUBLIC,
    "below a wildcard": PUBLIC,
    "international name": PUBLIC,
    "TLS": "hello",
    "TLS over IPv6": "2606:2800:220:1::1 for only6.example",
    "server name in capitals": "hello",
    "hello byte by byte": "hello",
    "hello in small records": "hello",
    "large hello": "hello",
    "HTTP": GOOD,
    "HTTP byte by byte": GOOD,
    "two requests": f"{GOOD} | {GOOD}",
    "an answer too long for a datagram": "cut, 64 records",
    "data in an option of a question": PUBLIC,
    "server name with a dot at its end": "hello",
    "second hello": "hello | hello",
    "host with a dot at its end": f"{GOOD}.",
    "QUIC client": "answer to question",
    "QUIC client of version 2": "answer to question",
    "QUIC client with a hello of three datagrams": "answer to question",
    "QUIC client that is sent a Retry": "answer to question",
    "QUIC client that negotiates its version": "answer to question",
    "QUIC in two datagrams": "first, second",
    "QUIC in two datagrams, the second first": "second, first, then",
    "QUIC of version 2": "hello, then",
    "QUIC again after a Retry": "hello, again",
    "QUIC again after version negotiation": "hello, again",
    "QUIC, another good connection": "hello, then, hello of the other",
    # what cannot be read is lost, the connection goes on
    "QUIC, an unknown version later": "hello, then",
    "QUIC, another key later": "hello, then",
    # the first ones are good
    "another name in a second hello": "hello | refused",
    "third request for another host, later": f"{GOOD} | {GOOD} | refused",
    "second request behind a body": f"{GOOD} | refused",
    "second request behind chunks": f"{GOOD} | refused",
    "second request after an upgrade": f"{GOOD} | refused",
    "tunnel": f"{PUBLIC} for good.example:443 | refused",
}
FAILS = {"refused", "NXDOMAIN", "SERVFAIL", "NOERROR", "NOTIMP"}


@pytest.mark.root
def test_nothing_gets_past_the_policy(namespaces):  # noqa: F811 - the fixture
    argv = ["unshare", "-n", "-m", sys.executable, str(SCRIPT.with_name("attacks_in_namespaces.py")), str(namespaces)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert {name: results.pop(name) for name in WORKS} == WORKS
    assert {name: result for name, result in results.items() if result not in FAILS} == {}
    assert len(results) > 40


def test_the_page_names_every_attempt():
    section = PAGE.read_text().partition("## What was tried")[2]
    rows = "".join(line.rpartition(" | ")[2] for line in section.splitlines() if line.startswith("| "))
    source = "".join(SCRIPT.with_name(name).read_text() for name in ("attacks_in_namespaces.py", "quic_attacks.py"))
    names = re.findall(r'^ +"([^"]+)": (?:lambda|\{|\()', source, re.MULTILINE)
    assert set(re.findall(r"`([^`]+)`", rows)) == set(names)
