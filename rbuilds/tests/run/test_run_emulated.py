# SPDX-License-Identifier: Apache-2.0
"""Real enclaves with their proxies, from start to end, and after everything that can be killed was killed."""

import itertools
import json
import os
import random
import signal

import pytest

from .conftest import HEARTBEAT, ORDERLY, STAY

REPORT = '{"version":1,"unit":"app","exit_status":%d,"signal":null,"reason":"it exited"}'
SERVE = "enclave_network serve 8080 %d &"


@pytest.fixture
def networked(make_image, free_port):
    """Return make(TCP port) -> an image that answers on its ingress port with what the port says, and that one."""
    numbers = itertools.count()

    def make(upstream, **custom):
        port, vsock_port = free_port(), random.randrange(10_000, 2_000_000)
        free_port.release()
        network = {
            "egress": [{"host": "127.0.0.1", "port": upstream, "vsock_port": vsock_port}],
            "ingress": [{"port": port, "vsock_port": 8080}],
        }
        lines = (ORDERLY, SERVE % vsock_port, HEARTBEAT, STAY)
        return make_image(*lines, name=f"app{next(numbers)}", network=network, **custom), port

    return make


def test_enclave_and_network_from_start_to_end(host, networked, answering, ask, running, eventually):
    with answering(b"from outside") as upstream:
        image, port = networked(upstream)
        ran = host.run(image)
        assert "NOT confidential" in ran.err
        started = ran.json
        assert (started["name"], started["cid"], started["memory_mib"], started["cpus"]) == ("app0", 127, 64, 2)
        assert (started["backend"], started["confidential"], started["state"]) == ("nitro-emu", False, "RUNNING")
        assert len(started["network"]) == 2
        assert eventually(lambda: ask(port), "an answer") == b"from outside"

        [listed] = host("list", "--json").json
        assert listed == {**started, "image": str(image)}
        proxies = [each["process"]["pid"] for each in host.proxies().values()]
        supervisor = host.record(127)["supervisor"]["pid"]
        assert len(proxies) == 2 and all(running(pid) for pid in (*proxies, supervisor, started["pid"]))

        host("drop", "app0")
        assert not any(running(pid) for pid in (*proxies, supervisor, started["pid"]))
        assert host.traces() == [] and host("list", "--json").json == []


def test_attach_shows_the_console_and_exits_as_the_app_did(host, make_image):
    image = make_image(
        HEARTBEAT, "echo hello from inside", f"enclave_network report '{REPORT % 7}'", "enclave_network off"
    )
    ran = host("run", image, "--attach", status=7)
    assert ran.out == "hello from inside\n"
    assert host.traces() == []


def test_end_of_a_detached_enclave_is_told_to_whoever_asks_later(host, make_image):
    ends = (f"enclave_network report '{REPORT % 7}'", "enclave_network off")
    started = host.run(make_image(HEARTBEAT, *ends, name="crashed")).json
    waited = host("wait", "crashed", status=7)
    assert waited.out.splitlines()[0] == "it exited"
    assert host("list", "--json").json == []
    [row] = host("list", "--all", "--json").json
    assert (row["id"], row["state"], row["exit_status"]) == (started["id"], "ENDED (7)", 7)
    assert row["words"][0] == "it exited"
    table = host("list", "--all").out
    assert "ENDED (7)" in table and "  it exited" in table
    # one that runs is waited for; one that is dropped is no success of its app
    host.run(make_image(ORDERLY, HEARTBEAT, STAY, name="stays"))
    waiting = host.start("wait", "stays", "--json")
    host("drop", "stays")
    assert host.finish(waiting).json["name"] == "stays"
    assert "no running enclave" in host("wait", "nobody", status=2).refusal
    assert host.traces() == []


def test_attach_to_a_running_enclave(host, make_image):
    host.run(make_image(ORDERLY, HEARTBEAT, "echo from the app", STAY), "--debug")
    attached = host.start("attach", "app")
    lines = iter(attached.stdout.readline, "")
    assert any(line == "from the app\n" for line in lines)  # it goes on, so the end is not awaited
    host("drop", "--recent")
    host.finish(attached)


def test_attach_needs_debug_mode(host, make_image):
    host.run(make_image())
    assert "debug" in host("attach", "127", status=2).refusal


def test_two_of_one_image_share_the_way_out_and_do_not_disturb_each_other(host, networked, answering, ask, eventually):
    with answering(b"outside") as upstream:
        image, port = networked(upstream)
        assert host.run(image).json["cid"] == 127
        # the ingress port is taken: nothing of the second may stay
        refused = host.run(image, status=5)
        assert "in use" in refused.refusal or "its port has" in refused.refusal
        assert [each["cid"] for each in host("list", "--json").json] == [127]

        second = host.run(image, "--bind", "127.0.0.2").json
        assert (second["cid"], second["name"]) == (128, "app0_1")
        assert len(host.proxies()) == 3
        for address in ("127.0.0.1", "127.0.0.2"):
            assert eventually(lambda at=address: ask(port, at), "an answer") == b"outside"
        host("drop", "127")
        assert ask(port, "127.0.0.2") == b"outside"
        assert ask(port, "127.0.0.1") == b""
        [row] = host("list", "--json").json
        assert row["cid"] == 128
        host("drop", "--all")
        assert host.traces() == []


def test_two_rules_for_one_parent_port_are_refused(host, make_image):
    rule = {"host": "127.0.0.1", "port": 1, "vsock_port": random.randrange(10_000, 2_000_000)}
    host.run(make_image(name="one", network={"egress": [rule]}))
    other = make_image(name="two", network={"egress": [{**rule, "host": "localhost"}]})
    assert "127" in host.run(other, status=5).refusal
    assert [row["name"] for row in host("list", "--json").json] == ["one"]
    host.run(make_image(name="three", network={"egress": [rule]}))
    [proxy] = host.proxies().values()
    assert proxy["users"] == [127, 128]


def test_end_of_the_enclave_ends_its_proxies(host, networked, running, eventually):
    image, _ = networked(1)
    started = host.run(image).json
    pids = [each["process"]["pid"] for each in host.proxies().values()]
    os.kill(started["pid"], signal.SIGTERM)
    eventually(lambda: host.traces() == [], "clean-up")
    assert not any(running(pid) for pid in pids)


def test_killed_proxy_comes_back(host, networked, answering, ask, running, eventually):
    with answering(b"outside") as upstream:
        image, port = networked(upstream)
        host.run(image)
        before = {key: each["process"]["pid"] for key, each in host.proxies().items()}
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        eventually(
            lambda: all(
                each["process"]["pid"] != before[key] and running(each["process"]["pid"])
                for key, each in host.proxies().items()
            ),
            "a restart",
        )
        assert eventually(lambda: ask(port), "an answer") == b"outside"


def test_killed_supervisor_is_replaced_while_the_enclave_runs(host, networked, answering, ask, running, eventually):
    with answering(b"outside") as upstream:
        image, port = networked(upstream)
        host.run(image)
        supervisor = host.record(127)["supervisor"]["pid"]
        os.kill(supervisor, signal.SIGKILL)
        eventually(lambda: not running(supervisor), "its end")
        assert ask(port) == b"outside"  # nothing else was touched
        host("list")
        fresh = host.record(127)["supervisor"]["pid"]
        assert fresh != supervisor and running(fresh)
        assert ask(port) == b"outside"
        host("drop", "127")
        assert not running(fresh) and host.traces() == []


def test_after_kill_of_everything_the_next_command_clears_up(host, networked, running, eventually):
    image, _ = networked(1)
    started = host.run(image).json
    pids = [each["process"]["pid"] for each in host.proxies().values()]
    supervisor = host.record(127)["supervisor"]["pid"]
    for pid in (supervisor, started["pid"]):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not running(supervisor) and not running(started["pid"]), "their end")
    assert host("list", "--json").json == []
    assert not any(running(pid) for pid in pids) and host.traces() == []
    assert host.run(image).json["cid"] == 127


def test_launch_whose_command_is_killed_leaves_nothing(host, make_image, tmp_path, eventually):
    ready = host.runtime_dir / "enclaves"
    image = make_image(ORDERLY, "busybox sleep 1", HEARTBEAT, STAY)
    launching = host.start("run", image)
    eventually(lambda: list(ready.glob("i-*/state.json")), "the boot")
    launching.kill()
    launching.communicate()
    eventually(lambda: host.traces() == [], "clean-up")
    assert host("list", "--json").json == []


def test_boot_that_fails_is_one_line_and_leaves_nothing(host, make_image):
    rule = {"host": "127.0.0.1", "port": 1, "vsock_port": random.randrange(10_000, 2_000_000)}
    refused = host.run(make_image("echo last words", "exit 3", network={"egress": [rule]}), status=5)
    assert "E36" in refused.refusal and "last words" in refused.err
    assert host.traces() == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--memory", "10"],
        ["--cid", "3"],
        ["--cpus", "0"],
        ["--name", ""],
        ["--bind", "localhost"],
        ["--publish", "80:81"],
        ["--publish", "90-80:8080"],
        ["--attach"],
    ],
    ids=" ".join,
)
def test_flags_that_cannot_be_used(host, make_image, flags):
    assert host.run(make_image(), *flags, status=2).refusal
    assert host.traces() == []


def test_explicit_cid_that_is_taken_and_names(host, make_image):
    image = make_image()
    host.run(image, "--cid", 300)
    assert host.run(image, "--cid", 300, status=2).refusal
    assert host.run(image, "--cid", 301, "--name", "other").json["name"] == "other"
    assert host("drop", "nobody", status=2).refusal
    assert host("drop", "--recent", "--json").json[0]["name"] == "other"
    assert [row["cid"] for row in host("drop", "--all", "--json").json] == [300]


def test_image_that_cannot_be_read(host, tmp_path):
    path = tmp_path / "broken.eif"
    path.write_bytes(b"no image")
    assert host.run(path, status=2).refusal
    assert host.run(tmp_path / "none.eif", status=2).refusal


def test_bad_metadata_is_refused_before_anything_starts(host, make_image):
    rule = {"host": "-rf", "port": 1, "vsock_port": 7}
    assert host.run(make_image(network={"egress": [rule]}), status=2).refusal
    assert host.traces() == []


def test_doctor_judges_image_and_host(host, make_image):
    image = make_image(kernel={"name": "Debian", "version": "6.1", "nitro-capable": False})
    report = json.loads(host("doctor", "--image", image, "--json").out)
    found = {each["id"]: each["severity"] for each in report["findings"]}
    assert report["backend"] == "nitro-emu" and report["verdict"] in ("ok", "note", "warning")
    assert found["kernel-emulator-only"] == "note" and found["image"] == found["memory-needed"] == "ok"
    small = json.loads(host("doctor", "--image", image, "--memory", 8, "--json", status=1).out)
    assert "memory-below-image" in [each["id"] for each in small["findings"] if each["severity"] == "error"]
    damaged = bytearray(image.read_bytes())
    damaged[-1] ^= 1
    image.write_bytes(damaged)
    broken = json.loads(host("doctor", "--image", image, "--json", status=1).out)
    assert "image-crc" in [each["id"] for each in broken["findings"]]
