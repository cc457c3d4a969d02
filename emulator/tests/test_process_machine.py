# SPDX-License-Identifier: Apache-2.0
"""Real enclaves, booted from real images by the real command."""

import json
import os
import pathlib
import signal
import socket

import pytest

HEARTBEAT = "probe heartbeat"
ORDERLY = "trap 'probe off' TERM"
STAY = "while :; do busybox sleep 60 & wait $!; done"
STANDARD = (ORDERLY, HEARTBEAT, STAY)


def test_lifecycle(emulator, make_eif, running):
    eif = make_eif(*STANDARD)
    ran = emulator.run(eif)
    assert "NOT CONFIDENTIAL" in ran.err
    started = ran.json
    assert list(started) == [
        "EnclaveName",
        "EnclaveID",
        "ProcessID",
        "EnclaveCID",
        "NumberOfCPUs",
        "CPUIDs",
        "MemoryMiB",
    ]
    assert (started["EnclaveName"], started["EnclaveCID"], started["MemoryMiB"]) == ("app", 16, 64)
    assert running(started["ProcessID"])

    [described] = emulator("describe-enclaves", "--metadata").json
    assert {key: described[key] for key in started} == started
    assert (described["State"], described["Flags"], described["ImageName"]) == ("RUNNING", "NONE", "app")
    assert described["Measurements"] == emulator("describe-eif", "--eif-path", eif).json["Measurements"]
    assert "Metadata" not in emulator("describe-enclaves").json[0]

    record = json.loads((emulator.runtime_dir / "registry/16.json").read_text())
    init = emulator.state(started["EnclaveID"])["init"]["pid"]
    assert record["transport"] == "fabric"
    assert record["pid_namespace"] == os.stat(f"/proc/{init}/ns/pid").st_ino != os.stat("/proc/self/ns/pid").st_ino

    terminated = emulator("terminate-enclave", "--enclave-id", started["EnclaveID"]).json
    assert terminated == {"EnclaveName": "app", "EnclaveID": started["EnclaveID"], "Terminated": True}
    assert not running(started["ProcessID"]) and not running(init)
    assert emulator.traces() == []
    assert emulator("describe-enclaves").json == []
    with open("/proc/self/mountinfo") as mounts:
        assert str(emulator.runtime_dir) not in mounts.read()


def test_wait_exits_as_the_app_did(emulator, make_eif):
    report = '{"version":1,"unit":"app","exit_status":7,"signal":null,"reason":"it exited"}'
    eif = make_eif(HEARTBEAT, f"probe report '{report}'", "probe off")
    enclave_id = emulator.run(eif).json["EnclaveID"]
    end = emulator("wait", "--enclave-id", enclave_id, status=7).json
    assert (end["unit"], end["exit_status"], end["signal"], end["reason"]) == ("app", 7, None, "it exited")
    # also when asked later, and by name
    assert emulator("wait", "--enclave-name", "app", status=7).json == end
    assert emulator.traces() == []


def test_wait_hears_of_an_end_that_comes_later(emulator, make_eif):
    enclave_id = emulator.run(make_eif(*STANDARD)).json["EnclaveID"]
    waiting = emulator.start("wait", "--enclave-id", enclave_id)
    emulator("terminate-enclave", "--enclave-name", "app")
    out, _ = waiting.communicate()
    assert waiting.returncode == 0
    assert json.loads(out)["reason"] == "terminated: it powered off"


def test_init_that_ignores_sigterm_is_killed_at_once(emulator, make_eif):
    emulator.run(make_eif(HEARTBEAT, "exec busybox sleep 1000"))
    emulator("terminate-enclave", "--enclave-name", "app")
    assert emulator("wait", "--enclave-name", "app", status=255).json["reason"].startswith("terminated")


def test_both_ramdisks_are_there_and_the_host_is_not(emulator, make_eif, tmp_path):
    secret = tmp_path / "secret-of-the-host"
    secret.write_text("x")
    lines = (
        "busybox cat /from-app; echo",
        f"busybox ls {secret} 2>/dev/null || echo no host file",
        "echo pid $$",
        "busybox ps | busybox grep -v busybox | busybox grep -c python",
        "busybox grep NoNewPrivs /proc/self/status",
        "busybox ip link | busybox grep -c mtu",
        "{ echo x > /proc/sys/kernel/printk; } 2>/dev/null || echo no sysctl of the host",
        "{ echo x > /run/enclavekit/fabric/3/x; } 2>/dev/null || echo no socket for the host",
        "busybox hostname",
        "probe nsm",
        "echo to the device > /dev/console",
    )
    result = emulator.run(make_eif(HEARTBEAT, *lines, "probe off"), "--attach-console")
    shown = result.out.partition("connected to the console.\n")[2].splitlines()
    assert shown == [
        "second ramdisk",
        "no host file",
        "pid 1",
        "0",
        "NoNewPrivs:\t1",
        "1",
        "no sysctl of the host",
        "no socket for the host",
        "enclave",
        "nsm answered: yes",
        "to the device",
    ]


def test_attached_console_of_an_enclave_that_ends_at_once(emulator, make_eif):
    result = emulator.run(make_eif(HEARTBEAT, "echo last words", "probe off"), "--attach-console")
    assert result.out.endswith("connected to the console.\nlast words\n")


def test_console_outside_debug_mode_is_e44(emulator, make_eif):
    emulator.run(make_eif(*STANDARD))
    refused = emulator("console", "--enclave-name", "app", status=44)
    assert refused.err.startswith("[ E44 ]")


def test_console_leaves_after_its_timeout(emulator, make_eif):
    emulator.run(make_eif("echo hello", *STANDARD), "--debug-mode")
    assert "hello" in emulator("console", "--enclave-name", "app", "--disconnect-timeout", "0.1").out


@pytest.mark.parametrize("flags", [(), ("--debug-mode",)])
def test_nsm_has_the_pcrs_of_that_very_image(emulator, make_eif, flags, monkeypatch):
    from enclavekit_nsm.client import NsmClient

    started = emulator.run(make_eif(*STANDARD), *flags).json
    [described] = emulator("describe-enclaves").json
    assert described["Flags"] == ("DEBUG_MODE" if flags else "NONE")
    monkeypatch.chdir(emulator.runtime_dir / "enclaves" / started["EnclaveID"])  # sun_path is short
    with NsmClient.open("nsm.sock") as nsm:
        for number in (0, 1, 2):
            locked, value = _pcr(nsm.describe_pcr(number))
            assert locked
            assert value.hex() == ("00" * 48 if flags else described["Measurements"][f"PCR{number}"])
        assert started["EnclaveID"].encode() in nsm.attestation()


def _pcr(answer):
    return (answer.lock, answer.data)


def test_two_at_once(emulator, make_eif):
    eif = make_eif(*STANDARD)
    first, second = emulator.run(eif).json, emulator.run(eif).json
    assert (first["EnclaveName"], second["EnclaveName"]) == ("app", "app_1")
    assert (first["EnclaveCID"], second["EnclaveCID"]) == (16, 17)
    slots = {emulator.state(started["EnclaveID"])["slot"] for started in (first, second)}
    assert len(slots) == 2
    assert len(emulator("terminate-enclave", "--all").json) == 2
    assert emulator.traces() == []


def test_taken_and_refused_cids(emulator, make_eif):
    eif = make_eif(*STANDARD)
    assert emulator.run(eif, "--enclave-cid", 100, "--enclave-name", "one").json["EnclaveCID"] == 100
    taken = emulator.run(eif, "--enclave-cid", 100, status=29)
    assert taken.err.splitlines()[-1] == (
        "[ E29 ] Enclave driver failure: cannot use CID 100: it is taken by enclave one"
    )
    assert emulator.run(eif, "--enclave-cid", 3, status=3).err.startswith("[ E03 ]")
    assert len(emulator("describe-enclaves").json) == 1


def test_config_file(emulator, make_eif, tmp_path):
    config = tmp_path / "run.json"
    config.write_text(
        json.dumps({"eif_path": make_eif(*STANDARD), "memory_mib": 64, "cpu_count": 1, "enclave_cid": 40})
    )
    assert emulator("run-enclave", "--config", config).json["EnclaveCID"] == 40
    emulator("run-enclave", "--config", config, "--memory", 64, status=2)


def damage_end(data):
    return data[:-10]


def damage_header(data):
    return data[:100]


def damage_body(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def damage_all(data):
    return b"\x7fELF" + data[4:]


@pytest.mark.parametrize("damage", [damage_end, damage_header, damage_body, damage_all, lambda data: b""])
def test_damaged_images_are_e35_and_leave_nothing(emulator, make_eif, damage, tmp_path):
    with open(make_eif(*STANDARD), "rb") as source:
        data = damage(source.read())
    bad = tmp_path / "bad.eif"
    bad.write_bytes(data)
    refused = emulator.run(bad, status=35)
    assert refused.out == ""
    [line] = [line for line in refused.err.splitlines() if line.startswith("[ E")]
    assert line.startswith("[ E35 ] EIF parsing failure: cannot ")
    assert emulator.traces() == []


class WrongSigner:
    """Signs another PCR0 than the image's."""

    def __init__(self, signer):
        self._signer = signer
        self.certificate_pem = signer.certificate_pem

    def sign(self, _pcr0):
        return self._signer.sign(bytes(48))


@pytest.fixture
def signer():
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from enclavekit_eif.signature import Signer

    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "signer")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA384())
    )
    return Signer(key, certificate.public_bytes(serialization.Encoding.PEM))


def test_signed_image_has_pcr8(emulator, make_eif, signer, tmp_path):
    emulator.run(make_eif(*STANDARD, signer=signer))
    (tmp_path / "signer.pem").write_bytes(signer.certificate_pem)
    pcr8 = emulator("pcr", "--signing-certificate", tmp_path / "signer.pem").json["PCR8"]
    assert emulator("describe-enclaves").json[0]["Measurements"]["PCR8"] == pcr8


def test_image_with_a_signature_of_another_is_e59(emulator, make_eif, signer):
    refused = emulator.run(make_eif(*STANDARD, signer=WrongSigner(signer)), status=59)
    assert refused.err.splitlines()[-1].startswith("[ E59 ] EIF signature checker failure: cannot run ")
    assert emulator.traces() == []


def test_pcr_of_a_file(emulator, tmp_path):
    """The worked vector of PCR2 of an image with one ramdisk: the PCR of nothing."""
    (tmp_path / "empty").write_bytes(b"")
    assert emulator("pcr", "--input", tmp_path / "empty").json == {
        "PCR": "21b9efbc184807662e966d34f390821309eeac6802309798826296bf3e8bec7c10edb30948c90ba67310f7b964fc500a"
    }
    (tmp_path / "no.pem").write_text("nothing")
    assert emulator("pcr", "--signing-certificate", tmp_path / "no.pem", status=19).err.startswith("[ E19 ]")


def test_dev_root_and_explain(emulator):
    path = emulator("dev-root").out.strip()
    assert "BEGIN CERTIFICATE" in pathlib.Path(path).read_text()
    assert emulator("explain", "--error-code", "E26").err.startswith("[ E26 ]")
    emulator("explain", "--error-code", "E99", status=3)


def test_unknown_nsm_fault_is_refused_before_anything_starts(emulator, make_eif):
    emulator.run(make_eif(*STANDARD), "--insecure-nsm-fault", "no-such-fault", status=2)
    assert not emulator.runtime_dir.exists()


def test_missing_image_is_e19(emulator, tmp_path):
    assert emulator.run(tmp_path / "none.eif", status=19).err.splitlines()[-1].startswith("[ E19 ]")


def test_flag_errors_are_2(emulator):
    emulator("run-enclave", "--eif-path", "x", status=2)
    emulator("run-enclave", "--eif-path", "x", "--memory", 64, status=2)
    emulator("terminate-enclave", status=2)
    emulator("terminate-enclave", "--all", "--enclave-name", "x", status=2)
    emulator("describe-eif", status=2)
    emulator("no-such-command", status=2)


def test_too_little_memory_is_e26(emulator, make_eif):
    refused = emulator.run(make_eif(*STANDARD), memory=63, status=26)
    assert "64 MiB" in refused.err.splitlines()[-1]


def test_unknown_enclaves(emulator):
    assert emulator("terminate-enclave", "--enclave-name", "x", status=58).err.startswith("[ E58 ]")
    assert emulator("console", "--enclave-id", "i-0-enc0", status=39).err.startswith("[ E39 ]")
    assert emulator("wait", "--enclave-name", "x", status=58).err.startswith("[ E58 ]")
    assert emulator("terminate-enclave", "--all").json == []


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (("echo about to fail >&2", "exit 3"), "its PID 1 exited with status 3 before its heartbeat"),
        (("echo about to fail", "probe off"), "it powered off before its heartbeat"),
        (("echo about to fail", "probe heartbeat 00", STAY), "its heartbeat was 0x00, not 0xb7"),
    ],
)
def test_enclave_that_dies_at_boot(emulator, make_eif, lines, cause):
    refused = emulator.run(make_eif(*lines), status=36)
    assert refused.out == ""
    first = next(line for line in refused.err.splitlines() if line.startswith("[ E"))
    assert first == f"[ E36 ] Enclave boot failure: cannot boot enclave app: {cause}"
    assert "  console: about to fail" in refused.err
    assert emulator.traces() == []


def test_image_without_init(emulator, make_eif):
    refused = emulator.run(make_eif(with_init=False), status=36)
    assert "cannot execute /init of the image: no such file or directory" in refused.err
    assert emulator.traces() == []


def test_image_whose_dev_is_a_link_changes_nothing_outside(emulator, make_eif, tmp_path):
    eif = make_eif(*STANDARD, files={"dev": "a file where a directory should be"})
    refused = emulator.run(eif, status=36)
    assert "/dev of the image is not a directory" in refused.err
    assert emulator.traces() == []


def test_killed_supervisor_takes_the_enclave_with_it(emulator, make_eif, running, wait_until):
    started = emulator.run(make_eif(*STANDARD)).json
    state = emulator.state(started["EnclaveID"])
    os.kill(started["ProcessID"], signal.SIGKILL)
    wait_until(lambda: not running(state["init"]["pid"]), "the end of PID 1")
    assert emulator.traces() != []
    assert emulator("describe-enclaves").json == []
    assert emulator.traces() == []
    assert state["cgroup"] is None or not os.path.exists(state["cgroup"])
    assert emulator.run(make_eif(*STANDARD, name="next")).json["EnclaveCID"] == started["EnclaveCID"]


def test_enclave_that_clears_its_death_signal_is_ended_by_the_next_command(emulator, make_eif, running):
    """PID 1 is stopped, as a stand-in: what matters is that the next command ends what is still there."""
    started = emulator.run(make_eif(*STANDARD)).json
    state = emulator.state(started["EnclaveID"])
    # a supervisor that is gone while its PID 1 is not: the record names another process
    path = emulator.runtime_dir / "enclaves" / started["EnclaveID"] / "state.json"
    os.kill(started["ProcessID"], signal.SIGSTOP)
    try:
        path.write_text(json.dumps({**state, "supervisor": {"pid": 1, "start_ticks": 1}}))
        assert emulator("describe-enclaves").json == []
        assert not running(state["init"]["pid"])
        assert emulator.traces() == []
    finally:
        os.kill(started["ProcessID"], signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_supervisor_stops_in_order_on_signals(emulator, make_eif, running, wait_until, number):
    started = emulator.run(make_eif(*STANDARD)).json
    os.kill(started["ProcessID"], number)
    wait_until(lambda: not running(started["ProcessID"]), "the end of the supervisor")
    assert emulator.traces() == []
    assert emulator("wait", "--enclave-id", started["EnclaveID"]).json["reason"] == "terminated: it powered off"


def test_interrupted_run_leaves_nothing(emulator, make_eif, running, wait_until):
    starting = emulator.start("run-enclave", "--eif-path", make_eif(STAY), "--memory", 64, "--cpu-count", 1)
    init = wait_until(lambda: [s["init"] for s in emulator.states() if s["init"]], "the start of PID 1")[0]
    starting.send_signal(signal.SIGINT)
    starting.communicate()
    assert starting.returncode == 130
    wait_until(lambda: emulator.traces() == [], "clean-up")
    assert not running(init["pid"])


def test_hostile_enclave_harms_only_itself(emulator, make_eif, tmp_path, wait_until):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("stays")
    victim.chmod(0o777)
    here = "/run/enclavekit/fabric/16"
    eif = make_eif(
        ORDERLY,
        HEARTBEAT,
        "probe garbage",
        f"busybox mv {here}/parent {here}/moved",
        f"busybox ln -s {victim} {here}/parent",
        f"busybox ln -s {victim} {here}/links",
        f"busybox mkfifo {here}/53000.sock",
        f"busybox mkdir -p {here}/a/b/c/d/e; busybox ln -s {victim}/file {here}/a/b/c/link",
        "busybox dd if=/dev/zero bs=64k count=200 2>/dev/null",
        f"echo > {here}/done",
        STAY,
    )
    started = emulator.run(eif).json
    wait_until((emulator.runtime_dir / "fabric/16/done").exists, "the attack")
    assert emulator("describe-enclaves").json[0]["State"] == "RUNNING"
    emulator("terminate-enclave", "--enclave-id", started["EnclaveID"])
    assert (victim / "file").read_text() == "stays"
    assert emulator.traces() == []


def test_memory_of_the_whole_enclave_is_limited(emulator, make_eif):
    other = emulator.run(
        make_eif(*STANDARD, name="other")
    ).json  # the one that is to end may have ended before it can be asked
    if emulator.states()[0]["cgroup"] is None:
        pytest.skip("no cgroup with a memory controller can be made here")
    emulator("terminate-enclave", "--enclave-id", other["EnclaveID"])
    started = emulator.run(make_eif(HEARTBEAT, "probe eat 50 & probe eat 200", "probe eat 200", "probe off")).json
    end = emulator("wait", "--enclave-id", started["EnclaveID"], status=255).json
    assert end["reason"].startswith("it ran out of its 64 MiB")


def test_other_users_cannot_reach_an_enclave(emulator, make_eif):
    emulator.run(make_eif(*STANDARD))
    assert (emulator.runtime_dir.stat().st_mode & 0o077) == 0
    assert (emulator.runtime_dir / "enclaves").stat().st_mode & 0o077 == 0


def test_control_socket_survives_nonsense(emulator, make_eif, monkeypatch):
    started = emulator.run(make_eif(*STANDARD)).json
    monkeypatch.chdir(emulator.runtime_dir / "enclaves" / started["EnclaveID"])
    for junk in (b"", b"\n", b"[]\n", b'{"do":"console"}\n', b'{"do":1}\n', b"x" * 100000):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect("control.sock")
            try:
                client.sendall(junk)
                client.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b""
            except (BrokenPipeError, ConnectionResetError):
                pass
    assert emulator("describe-enclaves").json[0]["State"] == "RUNNING"


def test_ordinary_user(user_emulator, make_eif, tmp_path, running):
    eif = make_eif("busybox id -u", *STANDARD)
    home = user_emulator.runtime_dir.parent
    copied = home / "app.eif"
    copied.write_bytes(pathlib.Path(eif).read_bytes())
    copied.chmod(0o644)
    started = user_emulator.run(copied, "--debug-mode").json
    state = user_emulator.state(started["EnclaveID"])
    assert os.stat(f"/proc/{state['init']['pid']}").st_uid == home.stat().st_uid
    shown = user_emulator("console", "--enclave-name", "app", "--disconnect-timeout", "0.1").out
    assert shown.splitlines()[-1] == "0"
    user_emulator("terminate-enclave", "--enclave-name", "app")
    assert user_emulator.traces() == []
    assert not running(state["init"]["pid"]) and not running(started["ProcessID"])


def test_wait_that_comes_while_the_supervisor_cleans_up(emulator, make_eif, running, wait_until):
    """It listens no more and has not yet said how the enclave ended: `wait` waits for that."""
    started = emulator.run(make_eif(*STANDARD)).json
    state = emulator.state(started["EnclaveID"])
    directory = emulator.runtime_dir / "enclaves" / started["EnclaveID"]
    os.kill(started["ProcessID"], signal.SIGSTOP)
    (directory / "control.sock").unlink()  # as when it has stopped listening
    waiting = emulator.start("wait", "--enclave-id", started["EnclaveID"])
    fds = pathlib.Path(f"/proc/{waiting.pid}/fdinfo")
    wait_until(lambda: any(f"Pid:\t{started['ProcessID']}\n" in read(path) for path in fds.iterdir()), "its patience")
    os.kill(state["init"]["pid"], signal.SIGKILL)
    os.kill(started["ProcessID"], signal.SIGCONT)
    out, _ = waiting.communicate()
    assert (waiting.returncode, json.loads(out)["enclave_id"]) == (255, started["EnclaveID"])


def read(path):
    try:
        return path.read_text()
    except OSError:
        return ""
