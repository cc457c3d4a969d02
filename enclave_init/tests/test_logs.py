# SPDX-License-Identifier: Apache-2.0
import json
import os

import pytest
from enclavekit_core.errors import ConfigError
from enclavekit_enclave_init.logs.config import LogConfig, parse_log_config
from enclavekit_enclave_init.logs.console import Console
from enclavekit_enclave_init.logs.hub import MAX_READERS, LogHub, Reader
from enclavekit_enclave_init.logs.kernel_log import parse_kernel_record
from enclavekit_enclave_init.logs.kernel_reader import KernelReader
from enclavekit_enclave_init.logs.line_queue import LineQueue
from enclavekit_enclave_init.logs.records import Batch, format_json, format_text
from enclavekit_enclave_init.logs.redaction import compile_patterns, redact
from enclavekit_enclave_init.logs.ring import BATCH_BYTES, LogRing
from enclavekit_enclave_init.runtime.reactor import Reactor
from hypothesis import given
from hypothesis import strategies as st


def batch(sequence, text, unit="a", time_s=0.0, stream="stdout"):
    return Batch(sequence, time_s, unit, stream, text)


def test_text_has_a_time_on_every_line():
    assert format_text(batch(1, b"one\n\ntwo\xff\n")) == (
        b"[1970-01-01 00:00:00] one\n[1970-01-01 00:00:00] \n[1970-01-01 00:00:00] two\xff\n"
    )


@given(st.lists(st.binary().filter(lambda line: b"\n" not in line), min_size=1))
def test_json_is_an_object_a_line(lines):
    written = format_json(batch(1, b"\n".join(lines) + b"\n", time_s=1.5, unit='q"', stream="stderr"))
    read = [json.loads(line) for line in written.splitlines()]
    assert [entry["text"] for entry in read] == [line.decode(errors="replace") for line in lines]
    assert {(entry["time"], entry["unit"], entry["stream"]) for entry in read} == {
        ("1970-01-01T00:00:01.500Z", 'q"', "stderr")
    }


def test_ring_lets_a_flood_push_out_its_own_past_only():
    ring = LogRing(20_000)
    ring.add(batch(1, b"precious\n", "quiet"))
    for number in range(2, 1000):
        ring.add(batch(number, b"x" * 99 + b"\n", "loud"))
    assert ring.size_bytes <= 20_000
    assert [line.text for line in ring.tail(["quiet"], 10)] == [b"precious"]
    assert ring.tail(["loud"], 1)[0].sequence == 999


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), max_size=60),
    st.sets(st.sampled_from("abc")),
    st.integers(0, 50),
)
def test_ring_returns_the_last_lines_in_order(batches, units, count):
    ring, sequence, model = LogRing(1 << 20), 1, []
    for unit, lines in batches:
        text = b"".join(b"%d\n" % (sequence + offset) for offset in range(lines))
        ring.add(batch(sequence, text, unit))
        model += [(sequence + offset, unit) for offset in range(lines)]
        sequence += lines
    wanted = [number for number, unit in model if unit in units]
    got = ring.tail(units, count)
    assert [line.sequence for line in got] == (wanted[-count:] if count else [])
    assert all(line.text == b"%d" % line.sequence for line in got)
    ring.clear("a")
    assert not ring.tail(["a"], 100) and ring.size_bytes <= sum(40 * 4 + BATCH_BYTES + 100 for _ in batches)


def test_ring_knows_times():
    ring = LogRing(1 << 20)
    for number, time_s in enumerate((10.0, 20.0, 5.0, 30.0), 1):  # the clock was set back once
        ring.add(batch(number, b"x\n", time_s=time_s))
    assert [line.sequence for line in ring.tail(None, 10, since_s=20.0)] == [2, 4]


@pytest.mark.parametrize("flood", [1, 10, 3000])
def test_slow_reader_loses_lines_and_is_told_how_many(flood):
    queue = LineQueue(format_text, max_bytes=10_000)
    for number in range(flood):
        queue.offer(batch(number + 1, b"y" * 20 + b"\n"))
    seen = b""
    while queue:
        data = queue.take()
        queue.give_back(data[1:])  # a reader that takes a byte at a time
        seen += data[:1]
    kept = seen.count(b"yyy") and sum(line.endswith(b"y" * 20) for line in seen.splitlines())
    told = [int(line.split()[2]) for line in seen.splitlines() if b"dropped" in line]
    assert kept + sum(told) == flood and (flood <= 10) == (not told)


def test_reader_that_catches_up_is_told_before_the_next_line():
    queue = LineQueue(format_text, max_bytes=1000)
    for number in range(100):
        queue.offer(batch(number + 1, b"z" * 50 + b"\n"))
    dropped = queue.dropped_lines
    assert dropped
    first = queue.take()
    queue.offer(batch(101, b"after\n"))
    lines = (first + queue.take()).splitlines()
    assert lines[-2].endswith(b"%d lines dropped: this reader is too slow" % dropped) and lines[-1].endswith(b"after")


@pytest.mark.parametrize(
    ("record", "lines"),
    [
        (b"6,339,5140900,-;NET: Registered protocol\n SUBSYSTEM=net\n", [b"NET: Registered protocol"]),
        (b"6,339,5140900,-,caller=T1;a\\x0ab\\x5c\n", [b"a", b"b\\"]),
        (b"12,1,1,-;from user space\n", []),
        (b"6,339", []),
        (b"", []),
        (b"x,1,1,-;a\n", []),
    ],
)
def test_kernel_records(record, lines):
    assert parse_kernel_record(record) == lines


def test_redaction():
    pattern = compile_patterns(["password=\\S+", "AKIA[A-Z0-9]{16}"])
    assert redact(b"user=x password=hunter2 AKIA0123456789ABCDEF.", pattern) == b"user=x [redacted] [redacted]."
    assert compile_patterns([]) is None and redact(b"a", None) == b"a"


@pytest.mark.parametrize("pattern", ["(", "(a)", "(?i)a", "a*", "x" * 2000])
def test_patterns_that_cannot_be_used(pattern):
    with pytest.raises(ValueError):
        compile_patterns([pattern])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ([], "logs"),
        ({"colour": 1}, "logs.colour"),
        ({"format": "xml"}, "logs.format"),
        ({"redact": ["("]}, "logs.redact"),
        ({"redact": "a"}, "logs.redact"),
        ({"ring_bytes": 10}, "logs.ring_bytes"),
        ({"ring_bytes": True}, "logs.ring_bytes"),
        ({"to_parent": "some"}, "logs.to_parent"),
        ({"kernel": 1}, "logs.kernel"),
        ({"stream_port": -1}, "logs.stream_port"),
        ({"max_files": 1}, "logs.max_files"),
    ],
)
def test_wrong_configuration_is_refused_by_name(values, key):
    with pytest.raises(ConfigError) as caught:
        parse_log_config(values, "init.toml")
    assert caught.value.key == key


def make_hub(**settings):
    return LogHub(Console(os.open(os.devnull, os.O_WRONLY)), LogConfig(**settings))


def test_hub_redacts_before_anything_else(tmp_path):
    hub = make_hub(redact=("secret\\d+",), format="json")
    reader = Reader(["app"], LineQueue(format_text))
    hub.follow(reader)
    hub.write("app", "stderr", [b"early secret1"])
    hub.keep_files(str(tmp_path), 10_000, 2)
    hub.write("app", "stdout", [b"late secret2", b"plain"])
    hub.say("of PID 1")
    hub.close()
    entries = [json.loads(line) for line in (tmp_path / "app.log").read_text().splitlines()]
    assert [(entry["stream"], entry["text"]) for entry in entries] == [
        ("stderr", "early [redacted]"),
        ("stdout", "late [redacted]"),
        ("stdout", "plain"),
    ]
    assert [line.text for line in hub.tail(None, 10)][-1] == b"of PID 1"
    assert b"secret" not in reader.queue.take() and hub.lines == {"app": 3, "enclave-init": 1}
    hub.clear("app")
    assert not (tmp_path / "app.log").exists() and not hub.tail(["app"], 10)


def test_hub_bounds_its_readers():
    hub = make_hub()
    readers = [Reader(None, LineQueue(format_text)) for _ in range(MAX_READERS)]
    for reader in readers:
        hub.follow(reader)
    with pytest.raises(ValueError):
        hub.follow(Reader(None, LineQueue(format_text)))
    hub.leave(readers[0])
    hub.leave(readers[0])
    hub.write("a", "stdout", [b"x"])
    assert not readers[0].queue and readers[1].queue


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="needs a kernel log that may be read")
def test_kernel_log_is_read_into_ours():
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError as exc:
        pytest.skip(f"needs a kernel log that may be read: {exc.strerror}")
    hub, reactor = make_hub(), Reactor()
    reader = KernelReader(reactor, hub)
    try:
        reactor.wait(at_once=True)
        lines = hub.tail(["kernel"], 10)
        assert lines and {line.stream for line in lines} == {"kernel"}
    finally:
        reader.close()
        reactor.close()
