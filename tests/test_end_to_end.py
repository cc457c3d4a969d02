# SPDX-License-Identifier: Apache-2.0
"""The product as its users meet it: the real commands, a real image, a real boot, `curl` included."""

import base64
import hashlib
import json
import os
import secrets
import subprocess

import pytest

from .conftest import NOTES, forwarded, start_enclave

pytestmark = pytest.mark.xdist_group("enclave")  # one image and one enclave for all of them
# tests that start another enclave: a virtual machine more takes up to a minute of all processors
boots_another = pytest.mark.parametrize(
    "enclave", ["process", pytest.param("qemu", marks=pytest.mark.long)], indirect=True
)

DATA = secrets.token_bytes(300_000)


@pytest.fixture(scope="module")
def measurements(shell, notes):
    described = shell.json("eif", "describe", notes)
    path = shell.directory / "pcrs.json"
    path.write_text(json.dumps(described["Measurements"]))
    return described["Measurements"]


@pytest.fixture(scope="module")
def ra(shell, enclave):
    with forwarded(shell, enclave.cid) as address:
        yield f"https://{address}"


def fetch_evidence(shell, ra, nonce):
    """Return the verified pin of the server's key, as a client would get it."""
    curl = ["curl", "-sSfk", "--retry", "280", "--retry-all-errors", "--retry-delay", "1"]
    answer = shell.json(*curl, f"{ra}/attestation?nonce={nonce}")
    path = shell.directory / f"evidence-{nonce[:8]}.cbor"
    path.write_bytes(base64.b64decode(answer["attestation_document"]))
    return path


def test_attestation_server_is_reached_through_the_pipeline(shell, enclave):
    """No port of the enclave but the pipeline's is used, and no network: TCP on its loopback."""
    rule = "0=tcp://127.0.0.1:8443"
    argv = [str(word) for word in enclave.pipeline("forward", "-L", rule, enclave.cid)]
    with subprocess.Popen(argv, cwd=shell.directory, env=shell.environment, stdout=subprocess.PIPE, text=True) as ours:
        try:
            _, address, *_ = ours.stdout.readline().split()
            evidence = fetch_evidence(shell, address.replace("tcp", "https"), secrets.token_hex(20))
        finally:
            ours.terminate()
    assert evidence.stat().st_size > 1000


def test_image_describes_as_nitro_cli_does(shell, notes, measurements):
    ours, emulated = shell.json("eif", "describe", notes), shell.json("nitro-emu", "describe-eif", "--eif-path", notes)
    assert ours == emulated
    assert list(ours)[:4] == ["EifVersion", "Measurements", "IsSigned", "CheckCRC"]
    assert ours["CheckCRC"] is True


def test_same_input_gives_the_same_bytes(shell, notes):
    again = shell.directory / "again.eif"
    shell.run(
        *("env", "TZ=Asia/Tokyo", "LC_ALL=C", "sh", "-c", 'umask 077; exec "$@"', "sh"),
        *("rbuilds", "build", "--rootfs", "notes.rootfs", "--config", NOTES / "enclave.yaml"),
        *("--authorize", "keys/alice.crt:all", "--output", again),
    )
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(notes.read_bytes()).digest()


def test_exec_streams_apart_and_exact(shell, enclave):
    done = shell.run(
        *enclave.pipeline("exec", "-i", enclave.cid, "--", "sh", "-c", "cat; echo no >&2; exit 42"),
        expect=42,
        stdin=DATA,
    )
    assert done.stdout == DATA
    assert done.stderr.endswith(b"no\n")


def test_exec_reports_death_by_signal(enclave):
    enclave.exec("sh", "-c", "kill -9 $$", expect=137)


def test_cp_goes_both_ways(shell, enclave):
    (shell.directory / "in.bin").write_bytes(DATA)
    os.chmod(shell.directory / "in.bin", 0o640)
    shell.run(*enclave.pipeline("cp", "in.bin", f"{enclave.cid}:/data/in.bin"))
    shell.run(*enclave.pipeline("cp", f"{enclave.cid}:/data/in.bin", "back.bin"))
    assert (shell.directory / "back.bin").read_bytes() == DATA
    assert (shell.directory / "back.bin").stat().st_mode & 0o777 == 0o640


def test_evidence_proves_image_key_and_file(shell, enclave, ra, measurements):
    nonce = secrets.token_hex(32)
    evidence = fetch_evidence(shell, ra, nonce)
    verify = ["attest", "verify", evidence, "--measurements", "pcrs.json", "--insecure-dev-root", enclave.dev_root]
    verdict = shell.json(*verify, "--nonce", nonce, "--service", "ra-web-srv", "--json")
    assert verdict["pcrs"]["0"] == measurements["PCR0"]
    pin = base64.b64encode(bytes.fromhex(verdict["binding"]["spki_sha256"])).decode()

    (shell.directory / "doc.bin").write_bytes(DATA)
    shell.run(*enclave.pipeline("cp", "doc.bin", f"{enclave.cid}:/data/doc.bin"))
    curl = ["curl", "-sSfk", "--pinnedpubkey", f"sha256//{pin}"]
    retry = ["--retry", "280", "--retry-all-errors", "--retry-delay", "1"]
    found = shell.json(*curl, *retry, f"{ra}/hash/?path=/data/doc.bin")
    assert found["sha3_hash"] == hashlib.sha3_512(DATA).hexdigest()

    document = shell.json(*curl, f"{ra}/doc/?path=/data/doc.bin&view=bin_hex")
    (shell.directory / "doc.cbor").write_bytes(bytes.fromhex(document["att_doc"]))
    claim = shell.json(*verify[:2], "doc.cbor", *verify[3:], "--json")
    names = ("file_path", "sha3_hash", "vrf_proof", "vrf_cipher_suite")
    assert json.loads(bytes.fromhex(claim["user_data"])) == {name: document[name] for name in names}
    assert (document["file_path"], document["sha3_hash"]) == ("/data/doc.bin", found["sha3_hash"])
    assert shell.json(*curl, f"{ra}/pcrs/")["pcrs"]["0"] == measurements["PCR0"]
    assert shell.json(*curl, f"{ra}/nsm_desc")["digest"] == "SHA384"


def test_client_talks_to_the_enclave_only_when_it_proves_itself(shell, enclave, ra, notes):
    """`attest verify --url` and a client's own connections, by a policy made of the image."""
    import requests
    from enclavekit_attestation import load_policy, read_insecure_dev_root
    from enclavekit_attestation.attested_tls import attested_ssl_context, refusal_of
    from enclavekit_attestation.transports import requests_adapter

    fetch_evidence(shell, ra, secrets.token_hex(32))  # the server is up
    mine = shell.directory / f"{enclave.id}.policy.yaml"
    shell.run("attest", "policy", "new", "--eif", notes, "--name", "notes", "-o", mine)
    verify = ["attest", "verify", "--url", ra, "--policy", mine]
    verdict = shell.json(*verify, "--insecure-dev-root", enclave.dev_root, "--json")
    assert (verdict["measurement_set"], verdict["nonce_checked"]) == ("notes", True)
    shell.refusal(*verify, expect=12)
    # the same evidence, a little older, is in the TLS certificate: of a handshake, and in a file of what openssl says
    in_certificate = shell.json(*verify, "--ra-tls", "--insecure-dev-root", enclave.dev_root, "--json")
    assert in_certificate["binding"] == verdict["binding"]
    handshake = ["openssl", "s_client", "-connect", ra.removeprefix("https://"), "-showcerts"]
    (shell.directory / "handshake.txt").write_bytes(shell.run(*handshake, stdin=b"").stdout)
    from_file = ["attest", "verify", "--ra-tls", "handshake.txt", *verify[4:], "--insecure-dev-root", enclave.dev_root]
    assert shell.json(*from_file, "--json")["binding"] == verdict["binding"]

    text = mine.read_text()
    other = shell.directory / "other.policy.yaml"
    other.write_text(text.replace(verdict["pcrs"]["0"], "11" * 48))
    shell.refusal(*verify[:-1], other, "--insecure-dev-root", enclave.dev_root, expect=17)

    root = read_insecure_dev_root(enclave.dev_root)
    with requests.Session() as session:
        policy = load_policy(str(mine))
        session.mount("https://", requests_adapter(attested_ssl_context(policy, insecure_dev_root=root)))
        assert session.get(f"{ra}/pcrs/", timeout=60).json()["pcrs"]["0"] == verdict["pcrs"]["0"]
    with requests.Session() as session:
        policy = load_policy(str(other))
        session.mount("https://", requests_adapter(attested_ssl_context(policy, insecure_dev_root=root)))
        with pytest.raises(requests.exceptions.SSLError) as caught:
            session.get(f"{ra}/pcrs/", timeout=60)
        assert refusal_of(caught.value).what == "PCRs"


def test_file_is_attested_before_anybody_asks(shell, enclave, ra):
    """Copied in, and nothing else done: the document about it is older than the question.

    Before that question nothing is on the way any more: fs-monitor has no work, the attestation server has heard of
    each of its files, and none of them waits for its document.
    """
    curl = ["curl", "-sSfk", "--retry", "280", "--retry-all-errors", "--retry-delay", "1"]
    monitor = enclave.pipeline("exec", "--system", enclave.cid, "--", "fs-monitor")
    (shell.directory / "ahead.bin").write_bytes(DATA)
    shell.run(*enclave.pipeline("cp", "ahead.bin", f"{enclave.cid}:/data/ahead.bin"))

    def is_at_rest():
        status, health = shell.json(*monitor, "status", "--wait", "--json"), shell.json(*curl, f"{ra}/health")
        closed = status["files"].pop("closed")
        is_published = status["bus"]["to_write"] == 0 and not any(status["files"].values())
        return is_published and (health["files_on_bus"], health["to_attest"]) == (closed, 0)

    while shell.run(*monitor, "hash", "/data/ahead.bin", expect=None).returncode or not is_at_rest():
        pass

    def timestamp(query):
        document = shell.json(*curl, f"{ra}/doc/?path=/data/ahead.bin&{query}")["att_doc"]
        return int(document["payload"]["timestamp"])

    now = timestamp(f"nonce={secrets.token_hex(20)}")
    assert timestamp("") < now


def test_file_in_the_enclave_is_proven_to_be_ours(shell, enclave, ra, measurements):
    (shell.directory / "ours.bin").write_bytes(DATA)
    shell.run(*enclave.pipeline("cp", "ours.bin", f"{enclave.cid}:/data/ours.bin"))
    curl = ["curl", "-sSfk", "--retry", "280", "--retry-all-errors", "--retry-delay", "1"]
    shell.run(*curl, f"{ra}/hash/?path=/data/ours.bin")  # fs-monitor has told of it
    prove = ["attest", "file", "--url", ra, "/data/ours.bin", "--measurements", "pcrs.json"]
    trust = ["--insecure-dev-root", enclave.dev_root]
    verdict = shell.json(*prove, "--expect", "ours.bin", *trust, "--json")
    assert [step["name"] for step in verdict["steps"]][-2:] == ["file", "vrf"]
    assert all(step["passed"] for step in verdict["steps"])
    (shell.directory / "changed.bin").write_bytes(DATA + b"!")
    shell.refusal(*prove, "--expect", "changed.bin", *trust, expect=20)
    shell.refusal(*prove, "--expect", "ours.bin", expect=12)


def test_monitor_in_the_enclave_becomes_ready(enclave):
    argv = enclave.pipeline("exec", "--system", enclave.cid, "--", "fs-monitor", "status", "--wait", "--json")
    status = enclave.shell.json(*argv)
    assert status["ready"] and status["roots"][0]["path"] == "/data"


def test_live_evidence_is_held_against_a_rebuilt_image(shell, enclave, ra):
    evidence = fetch_evidence(shell, ra, secrets.token_hex(32))
    app = ["--rootfs", "notes.rootfs", "--config", NOTES / "enclave.yaml", "--authorize", "keys/alice.crt:all"]
    words = ["rbuilds", "reproduce", *app, "--reuse-framework", "--against-document", evidence]
    shell.run(*words, "--insecure-dev-root", enclave.dev_root)
    shell.refusal(*words, "--insecure-dev-root", enclave.dev_root, "--env", "OTHER=1", expect=6)
    shell.refusal(*words, expect=6)  # the development root counts only when it is named


def test_stale_nonce_is_refused(shell, enclave, ra, measurements):
    evidence = fetch_evidence(shell, ra, secrets.token_hex(32))
    verify = ["attest", "verify", evidence, "--measurements", "pcrs.json", "--insecure-dev-root", enclave.dev_root]
    assert "nonce" in shell.refusal(*verify, "--nonce", secrets.token_hex(32), expect=15)


def test_development_root_counts_only_when_named(shell, enclave, ra, measurements):
    nonce = secrets.token_hex(32)
    evidence = fetch_evidence(shell, ra, nonce)
    shell.refusal("attest", "verify", evidence, "--measurements", "pcrs.json", "--nonce", nonce, expect=12)


def test_document_of_another_image_is_refused(shell, enclave, ra, measurements):
    evidence = fetch_evidence(shell, ra, secrets.token_hex(32))
    other = dict(measurements, PCR2="11" * 48)
    (shell.directory / "other.json").write_text(json.dumps(other))
    verify = ["attest", "verify", evidence, "--measurements", "other.json", "--insecure-dev-root", enclave.dev_root]
    assert "PCR2" in shell.refusal(*verify, expect=17)


def test_who_is_not_in_the_list_stays_out(shell, enclave):
    argv = enclave.pipeline("exec", enclave.cid, "--", "id", identity="keys/mallory")
    assert "mallory" in shell.refusal(*argv, expect=255)


def test_client_refuses_an_enclave_of_another_image(shell, enclave):
    other = shell.directory / "other.eif"
    (shell.directory / "marker").write_text("another app")
    rootfs = shell.directory / "other.rootfs"
    shell.run("cp", "-a", "notes.rootfs", rootfs)
    (rootfs / "marker").write_text("another app")
    build = ["rbuilds", "build", "--rootfs", rootfs, "--config", NOTES / "enclave.yaml", "--output", other]
    shell.run(*build, "--authorize", "keys/alice.crt:all")
    argv = enclave.pipeline("exec", enclave.cid, "--", "id", eif=other)
    assert "PCR" in shell.refusal(*argv, expect=255)


def test_client_without_a_policy_goes_nowhere(shell, enclave):
    shell.refusal("pipeline", "exec", "--identity", "keys/alice", enclave.cid, "--", "id", expect=255)


@boots_another
def test_debug_enclave_is_refused_unless_allowed(shell, enclave, notes):
    debug = start_enclave(shell, notes, "--debug-mode", "--enclave-name", "debugged", machine=enclave.machine)
    try:
        shell.refusal(*debug.pipeline("exec", debug.cid, "--", "sh", "-c", ":"), expect=255)
        shell.run(*debug.pipeline("exec", "--allow-debug", debug.cid, "--", "sh", "-c", ":"))
    finally:
        shell.run("nitro-emu", "terminate-enclave", "--enclave-id", debug.id)


@boots_another
def test_two_enclaves_run_side_by_side(shell, enclave, notes):
    second = start_enclave(shell, notes, "--enclave-name", "second", machine=enclave.machine)
    try:
        assert second.cid != enclave.cid
        second.exec("sh", "-c", "echo mine > /data/mine")
        enclave.exec("sh", "-c", "[ -e /data/mine ]", expect=1)
        listed = shell.json("nitro-emu", "describe-enclaves")
        assert {enclave.id, second.id} <= {item["EnclaveID"] for item in listed}
    finally:
        shell.run("nitro-emu", "terminate-enclave", "--enclave-id", second.id)
    assert second.id not in {item["EnclaveID"] for item in shell.json("nitro-emu", "describe-enclaves")}


def test_taken_cid_is_refused(shell, enclave, notes):
    argv = ["nitro-emu", "run-enclave", "--eif-path", notes, "--cpu-count", 2, "--memory", 1024]
    done = shell.run(*argv, "--enclave-cid", enclave.cid, expect=3 if enclave.cid < 4 else 29)
    assert b"[ E" in done.stderr


@boots_another
def test_app_exit_status_reaches_the_parent(shell, enclave, notes):
    app = start_enclave(shell, notes, "--enclave-name", "mortal", machine=enclave.machine)
    # the app's main process is the session leader that PID 1 started in the app's root
    find = 'for p in /proc/[0-9]*; do [ "$(readlink $p/root)" = /rootfs ] && echo ${p#/proc/}; done; :'
    pids = shell.output(*app.pipeline("exec", "--system", app.cid, "--", "sh", "-c", find)).split()
    kill = app.pipeline("exec", "--system", app.cid, "--", "sh", "-c", f"kill -KILL {min(map(int, pids))}")
    shell.run(*kill, expect=None)  # the enclave ends with its app, and may do so before it can answer
    record = shell.run("nitro-emu", "wait", "--enclave-id", app.id, expect=137)
    assert json.loads(record.stdout)["signal"] == 9


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 0x10]) + data[len(data) // 3 + 1 :],
        lambda data: b"\x7fELF" + data[4:],
        lambda data: b"",
    ],
    ids=["truncated", "last bit", "bit in the middle", "foreign", "empty"],
)
def test_damaged_image_does_not_boot(shell, notes, tmp_path, damage):
    path = tmp_path / "bad.eif"
    path.write_bytes(damage(notes.read_bytes()))
    before = shell.json("nitro-emu", "describe-enclaves")
    done = shell.run(*("nitro-emu", "run-enclave", "--eif-path", path, "--cpu-count", 2, "--memory", 1024), expect=35)
    assert b"[ E35 ]" in done.stderr
    assert shell.json("nitro-emu", "describe-enclaves") == before


def test_missing_inputs_leave_nothing(shell, notes, tmp_path):
    build = ["rbuilds", "build", "--rootfs", "notes.rootfs", "--output", tmp_path / "x.eif"]
    config = ["--config", NOTES / "enclave.yaml"]
    assert "no-such-kernel" in shell.refusal(*build, *config, "--kernel", tmp_path / "no-such-kernel", expect=2)
    bad = tmp_path / "bad.yaml"
    bad.write_text((NOTES / "enclave.yaml").read_text() + "\nentrypiont: [x]\n")
    assert "entrypiont" in shell.refusal(*build, "--config", bad, expect=2)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_port_in_use_is_said(shell, enclave):
    with forwarded(shell, enclave.cid) as address:
        refusal = shell.refusal("pf-proxy", "ip-to-vsock", "-i", address, "-v", f"{enclave.cid}:8443", expect=3)
    assert "address already in use" in refusal


def test_initctl_by_way_of_the_pipeline_and_from_the_parent(shell, notes):
    """PID 1 of a real image is asked in both ways; who is not in the list is not let in."""
    shell.run(
        *("rbuilds", "build", "--rootfs", "notes.rootfs", "--config", NOTES / "enclave.yaml"),
        *("--authorize", "keys/alice.crt:all,control", "--output", "controlled.eif"),
    )
    enclave = start_enclave(shell, shell.directory / "controlled.eif", "--enclave-name", "controlled")
    inside = json.loads(
        shell.output(*enclave.pipeline("exec", "--system", enclave.cid, "--", "initctl", "--json", "list"))
    )
    trust = ["--eif", enclave.eif, "--insecure-dev-root", enclave.dev_root]
    initctl = ["initctl", "--enclave", enclave.name, *trust]
    alice = [*initctl, "--identity", "keys/alice"]
    shell.output(*alice, "start", "app")  # the gateway is a unit like any other: the app may come after it
    tree = {unit["name"]: unit for unit in shell.json(*alice, "--json", "status")["units"]}
    assert {unit["name"] for unit in inside["services"]} == set(tree) >= {"app", "pipeline", "initctl-gateway"}
    assert tree["app"]["state"] == "running" and tree["app"]["pid"]
    assert "asked by alice by way of" in shell.output(*alice, "logs", "enclave-init", "-n", "100")
    lines = shell.output(*alice, "metrics").splitlines()
    rss = next(line for line in lines if line.startswith("enclave_init_resident_memory_bytes "))
    assert float(rss.split()[1]) < 25 * 1024 * 1024
    assert shell.json(*alice, "--json", "analyze")["boot_ms"] > 0
    shell.refusal(*initctl, "--identity", "keys/mallory", "ping", expect=3)
    # its end is told with its cause, and not a word of what the app said
    shell.output(*alice, "shutdown")
    end = json.loads(shell.run("nitro-emu", "wait", "--enclave-id", enclave.id, expect=None).stdout)
    assert end["cause"] in ("requested", "exited", "killed") and end["uptime_s"] > 0
    assert {line["unit"] for line in end["last_lines"]} == {"enclave-init"}
