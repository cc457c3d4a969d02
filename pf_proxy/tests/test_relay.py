# SPDX-License-Identifier: Apache-2.0
"""Bytes and ends through a real proxy, in both modes."""

import hashlib
import os
import socket
import threading

import pytest
from enclavekit_pf_proxy.limits import FDS_PER_CONNECTION
from enclavekit_pf_proxy.pipes import PipePool

PIECE = os.urandom(1 << 20)
PIECES = 48
LINGER_RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 s


def send_pieces(sock, pieces=PIECES):
    for _ in range(pieces):
        sock.sendall(PIECE)
    sock.shutdown(socket.SHUT_WR)


def digest_of(sock, results, key):
    digest = hashlib.sha256()
    while chunk := sock.recv(1 << 18):
        digest.update(chunk)
    results[key] = digest.digest()


@pytest.mark.parametrize("pieces", [PIECES, pytest.param(1024, marks=pytest.mark.long)])
def test_large_transfers_both_ways_at_once(relay_pair, pieces):
    client, upstream = relay_pair()
    results = {}
    threads = [
        threading.Thread(target=send_pieces, args=(client, pieces)),
        threading.Thread(target=send_pieces, args=(upstream, pieces)),
        threading.Thread(target=digest_of, args=(client, results, "down")),
        threading.Thread(target=digest_of, args=(upstream, results, "up")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    digest = hashlib.sha256()
    for _ in range(pieces):
        digest.update(PIECE)
    assert results == {"down": digest.digest(), "up": digest.digest()}


def test_few_pipes_serve_many_bulk_connections(relay_pair, monkeypatch):
    """A pipe goes from flow to flow, and never with bytes in it."""
    monkeypatch.setattr(relay_pair.server.shared, "pipes", PipePool(max_pipes=1))
    pairs = [relay_pair() for _ in range(4)]
    results = {}
    threads = [threading.Thread(target=send_pieces, args=(client,)) for client, _ in pairs]
    threads += [threading.Thread(target=digest_of, args=(pairs[n][1], results, n)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(4), hashlib.sha256(PIECE * PIECES).digest())


def test_small_messages_pass_at_once(relay_pair):
    client, upstream = relay_pair()
    for number in range(100):
        client.sendall(b"%d" % number)
        assert upstream.recv(100) == b"%d" % number
        upstream.sendall(b"-")
        assert client.recv(100) == b"-"


@pytest.mark.parametrize("size", [1, 3_000_000])
def test_urgent_data_takes_its_place_in_the_stream(relay_pair, read_all, size):
    """Vsock has none: urgency ends at the proxy, the bytes do not."""
    client, upstream = relay_pair()
    one, other = (client, upstream) if client.family == socket.AF_INET else (upstream, client)
    pieces = [os.urandom(size) for _ in range(3)]

    def send():
        for piece in pieces:
            one.sendall(piece)
            one.send(b"!", socket.MSG_OOB)
        one.send(b".")

    sender = threading.Thread(target=send)
    sender.start()
    expected = b"".join(piece + b"!" for piece in pieces) + b"."
    received = b""
    while len(received) < len(expected):  # no end comes to the rescue
        received += other.recv(1 << 20)
    sender.join()
    assert received == expected


def test_single_bytes_pass(relay_pair, read_all):
    client, upstream = relay_pair()
    for one, other in ((client, upstream), (upstream, client)):
        reader_got = []
        reader = threading.Thread(target=lambda sock=other, got=reader_got: got.append(read_all(sock)))
        reader.start()
        for byte in PIECE[:5000]:
            one.send(bytes([byte]))
        one.shutdown(socket.SHUT_WR)
        reader.join()
        assert reader_got == [PIECE[:5000]]


@pytest.mark.parametrize("first", ["client", "upstream"])
def test_half_close_leaves_the_other_direction_open(relay_pair, read_all, first):
    one, other = relay_pair()
    if first == "upstream":
        one, other = other, one
    one.sendall(b"question")
    one.shutdown(socket.SHUT_WR)
    assert read_all(other) == b"question"
    for _ in range(4):
        other.sendall(PIECE[:1000])
        assert one.recv(1000, socket.MSG_WAITALL) == PIECE[:1000]
    other.shutdown(socket.SHUT_WR)
    assert read_all(one) == b""


@pytest.mark.parametrize("first", ["client", "upstream"])
def test_end_of_one_side_reaches_the_other_after_all_bytes(relay_pair, read_all, first):
    one, other = relay_pair()
    if first == "upstream":
        one, other = other, one
    sender = threading.Thread(target=lambda: (one.sendall(PIECE * 8), one.close()))
    sender.start()
    assert hashlib.sha256(read_all(other)).digest() == hashlib.sha256(PIECE * 8).digest()
    sender.join()


def test_bytes_in_flight_survive_an_upstream_that_stops_reading(relay_pair, read_all):
    """An early answer: upstream sends it all and closes while the client is still sending."""
    client, upstream = relay_pair()
    client.sendall(b"x" * 1000)
    assert upstream.recv(10)
    upstream.sendall(b"answer" * 1000)
    upstream.close()
    assert read_all(client) == b"answer" * 1000


def test_bytes_in_flight_survive_a_client_that_is_reset(relay_pair, read_all):
    client, upstream = relay_pair()
    client.sendall(b"last words")
    assert upstream.recv(4) == b"last"
    if client.family == socket.AF_INET:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    client.close()
    assert read_all(upstream) == b" words"


def test_backpressure_reaches_the_sender(relay_pair):
    """Nobody reads upstream: the client can send what the buffers hold and no more."""
    client, upstream = relay_pair()
    client.settimeout(0.2)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 512 << 20:
            sent += client.send(PIECE)
    client.settimeout(None)
    received = 0
    client.shutdown(socket.SHUT_WR)
    while chunk := upstream.recv(1 << 20):
        received += len(chunk)
    assert received == sent


def test_a_stuck_connection_does_not_hold_up_others(relay_pair, read_all):
    stuck, _ = relay_pair()
    stuck.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            stuck.send(PIECE)
    client, upstream = relay_pair()
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    assert read_all(upstream) == b"hello"


def test_many_connections(relay_pair, read_all):
    pairs = [relay_pair() for _ in range(60)]
    for number, (client, _) in enumerate(pairs):
        client.sendall(b"%d" % number * 100)
        client.shutdown(socket.SHUT_WR)
    got = [read_all(upstream) for _, upstream in pairs]
    assert sorted(got) == sorted(b"%d" % number * 100 for number in range(60))


def test_no_descriptors_are_left_behind(ends, run_proxy, count_fds, read_all):
    from enclavekit_core.streams import connect

    listen, listener = ends
    before = count_fds()
    with run_proxy(listen, listener.bound_address) as server:
        running = count_fds()
        for number in range(50):
            client = connect(server.address)
            upstream, _ = listener.accept()
            client.sendall(b"x")
            assert upstream.recv(1) == b"x"
            for sock in (client, upstream) if number % 2 else (upstream, client):
                sock.close()
        # a last one that is seen through to its end: by then the loop has been round for all before it
        client, (upstream, _) = connect(server.address), listener.accept()
        client.shutdown(socket.SHUT_WR)
        assert read_all(upstream) == b""
        assert count_fds() <= running + 2 + FDS_PER_CONNECTION  # ours and its own
        client.close()
        upstream.close()
    assert count_fds() == before
