# SPDX-License-Identifier: Apache-2.0
"""Who is refused, by whom, and that nothing is said before: each of these must end without a command having run."""

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import time

import pytest
from enclavekit_attestation.binding import TlsIdentity, encode_binding
from enclavekit_attestation.caller import Identity
from enclavekit_core import fabric, tls
from enclavekit_core.address import UnixAddress, VsockAddress
from enclavekit_core.aio import start_server
from enclavekit_core.errors import TransportError, VerificationError
from enclavekit_core.streams import Listener, connect
from enclavekit_nsm.client import NsmClient
from enclavekit_pipeline.enclave.reception import MAX_STRANGERS
from enclavekit_pipeline.host import client, session
from enclavekit_pipeline.host.trust import build_trust
from enclavekit_pipeline.wire.exec_messages import ExecRequest
from enclavekit_pipeline.wire.frames import Frame, FrameDecoder, Kind, encode
from enclavekit_pipeline.wire.handshake import NONCE_BYTES, ServerHandshake

from .conftest import BIN, CID, PCRS, emulated_nsm, listening

TRUE = ("exec", "--system", CID, "--", "true")


def complaint(done, code=255):
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.decode().splitlines() if "warning" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("pipeline: cannot ")
    return lines[0]


def test_unlisted_caller(enclave):
    assert "no client 'mallory'" in complaint(enclave.run(*TRUE, identity="mallory"))


def test_other_image(enclave):
    assert "PCR0" in complaint(enclave.run(*TRUE, pcr0=b"\x0f" * 48))


def test_no_policy_no_identity(enclave):
    complaint(enclave.run(*TRUE, trust=False))
    environment = {**enclave.environment, "PIPELINE_IDENTITY": str(enclave.directory / "alice")}
    done = subprocess.run([BIN / "pipeline", *map(str, TRUE)], env=environment, capture_output=True)
    assert "--eif" in complaint(done)


def test_development_root_must_be_named(enclave):
    flags = ["--pcr", f"0={PCRS[0].hex()}", "--identity", enclave.directory / "alice"]
    done = subprocess.run(
        list(map(str, [BIN / "pipeline", "exec", *flags, CID, "--", "true"])),
        env=enclave.environment,
        capture_output=True,
    )
    complaint(done)


def test_nobody_listening(enclave):
    host = enclave.environment[fabric.RUNTIME_DIR_VARIABLE]
    fabric.write_record(f"{host}/registry/21.json", {"cid": 21, "transport": "fabric"})
    done = enclave.run("exec", "--connect-timeout", "0.1", 21, "--", "true")
    complaint(done)


def test_listener_without_a_list_does_not_start(inside, tmp_path):
    for text in (None, "clients: [{name: a, allow: [exec]}]", "clients: [{name: a, allow: [everything]}]"):
        path = tmp_path / "clients.yaml"
        if text:
            path.write_text(text)
        argv = [BIN / "pipeline", "listen", "--clients", path, "--nsm", inside.nsm_path]
        done = subprocess.run(argv, env=inside.environment, capture_output=True, timeout=30)
        assert done.returncode == 2
        assert done.stderr.startswith(b"pipeline: cannot use ")


class Impostor:
    """A host in the middle: it ends TLS itself and relays or replays evidence of a real enclave."""

    def __init__(self, path, document_for):
        self.identity = TlsIdentity.generate("pipeline")
        self.address = UnixAddress(path)
        self.document_for = document_for
        self.seen = []

    async def handle(self, reader, writer, peer):
        decoder, handshake = FrameDecoder(), ServerHandshake(bytes(NONCE_BYTES))
        while data := await reader.read(65536):
            for frame in decoder.feed(data):
                self.seen.append(frame.kind)
                if frame.kind is Kind.HELLO:
                    nonce = handshake.receive_hello(frame)
                    writer.write(encode(handshake.evidence(self.document_for(self, nonce))))
                else:
                    writer.write(encode(Frame(Kind.ACCEPT, b'{"name":"x"}')))
        writer.close()

    async def meet(self, inside, allow_debug=False):
        """Let a client try; return its error. What the client sent is in `seen`."""
        context = tls.server_context(self.identity.certificate_pem, self.identity.key_pem)
        with Listener(self.address) as listener:
            server = await start_server(self.handle, listener, tls=context)
            trust = build_trust(
                eif=None,
                policy=None,
                pcrs=[f"0={PCRS[0].hex()}"],
                insecure_dev_root=inside.dev_root,
                allow_debug=allow_debug,
                max_age_s=None,
                environment={},
            )
            target = client.Target(self.address, trust, Identity.load(str(inside.directory / "alice")), 5)
            try:
                with pytest.raises(VerificationError) as caught:
                    async with session.open_request(target, ExecRequest(argv=["true"])):
                        pass
            finally:
                server.close()
        return caught.value


def attest(inside, user_data, nonce):
    with NsmClient.open(inside.nsm_path) as nsm:
        return nsm.attestation(user_data, nonce)


@pytest.mark.parametrize(
    ("document_for", "word"),
    [
        # another key: evidence relayed from the real enclave names the real enclave's key
        (lambda i, me, nonce: attest(i, encode_binding("pipeline", bytes(32)), nonce), "key"),
        # another service's evidence, for the right key
        (lambda i, me, nonce: attest(i, encode_binding("ra-web-srv", me.identity.spki_sha256), nonce), "service"),
        # replayed: the right key, another nonce
        (lambda i, me, nonce: attest(i, encode_binding("pipeline", me.identity.spki_sha256), bytes(32)), "nonce"),
        # no binding at all
        (lambda i, me, nonce: attest(i, None, nonce), ""),
        (lambda i, me, nonce: b"\x84nonsense", ""),
    ],
    ids=["relayed", "other service", "replayed", "unbound", "nonsense"],
)
async def test_client_says_nothing_to_an_impostor(inside, tmp_path, document_for, word):
    impostor = Impostor(str(tmp_path / "s"), lambda me, nonce: document_for(inside, me, nonce))
    error = await impostor.meet(inside)
    assert word in str(error)
    assert impostor.seen == [Kind.HELLO]


async def test_debug_enclave_is_refused(inside, tmp_path):
    state = str(inside.directory / "state")
    with emulated_nsm(str(tmp_path / "nsm"), state, pcrs={}), NsmClient.open(str(tmp_path / "nsm")) as nsm:
        impostor = Impostor(
            str(tmp_path / "s"),
            lambda me, nonce: nsm.attestation(encode_binding("pipeline", me.identity.spki_sha256), nonce),
        )
        await impostor.meet(inside)
    assert impostor.seen == [Kind.HELLO]


def stranger(enclave, cid=CID):
    """Connect to the listener as the host does, once it listens; the caller says what it likes, or nothing."""
    deadline = time.monotonic() + 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fabric.RUNTIME_DIR_VARIABLE, enclave.environment[fabric.RUNTIME_DIR_VARIABLE])
        while True:
            try:
                return connect(VsockAddress(cid, 53000))
            except TransportError:
                if time.monotonic() > deadline:
                    raise


def test_silent_and_garbled_callers_do_not_disturb_others(enclave):
    """Others are served while the silent one stands there, not after it has been cut off."""
    for _ in range(5):  # on a machine that needs 20 s for a command it is cut off meanwhile
        with stranger(enclave) as silent, stranger(enclave) as garbled:
            garbled.sendall(os.urandom(4096))
            assert enclave.run(*TRUE).returncode == 0
            if is_open(silent):
                return
    pytest.fail("nobody is served before a silent caller is cut off")


def is_open(sock):
    sock.setblocking(False)
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True


def test_crowd_at_the_door_is_cut_off_and_keeps_nobody_out(enclave):
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(stranger(enclave)) for _ in range(MAX_STRANGERS * 2)]
        assert enclave.run(*TRUE).returncode == 0
        crowd[0].settimeout(20)
        assert crowd[0].recv(1) == b""  # the first of them had to go


@pytest.mark.parametrize(
    "frames",
    [
        [Frame(Kind.OPEN, b'{"verb":"exec","argv":["true"]}', 1)],
        [Frame(Kind.AUTH, b"{}")],
        [Frame(Kind.HELLO, b'{"version":99,"nonce":"' + b"00" * 32 + b'"}')],
        [
            Frame(Kind.HELLO, b'{"version":3,"nonce":"' + b"00" * 32 + b'"}'),
            Frame(Kind.OPEN, b'{"verb":"exec","argv":["true"]}', 1),
        ],
    ],
    ids=["no handshake", "no hello", "other version", "no proof"],
)
def test_listener_does_nothing_for_who_skips_a_step(enclave, frames):
    with tls.attested_client_context().wrap_socket(stranger(enclave), server_hostname="enclave") as sock:
        sock.settimeout(20)
        sock.sendall(b"".join(map(encode, frames)))
        decoder, got = FrameDecoder(), []
        while data := sock.recv(65536):
            got += decoder.feed(data)
    assert [frame.kind for frame in got if frame.kind is not Kind.EVIDENCE] == [Kind.ERROR]


def test_enclave_without_evidence_says_so(inside, tmp_path):
    """A listener whose NSM fails refuses callers in words and lives on."""
    nsm = str(tmp_path / "nsm")
    with emulated_nsm(nsm, str(inside.directory / "state"), faults=("failing",)):
        failing = dataclasses.replace(inside, nsm_path=nsm, directory=tmp_path)
        with listening(failing, [{"name": "a", "allow": ["exec"], "spki_sha256": "ab" * 32}], cid=22):
            words = [BIN / "pipeline", "exec", *inside.flags(), "22", "--", "true"]
            for _ in range(2):
                done = subprocess.run(words, env=inside.environment, capture_output=True, timeout=60)
                assert "cannot get a document" in complaint(done)


async def test_two_callers_at_once(enclave):
    async def one(number):
        return await asyncio.to_thread(enclave.run, "exec", "--system", CID, "--", "sh", "-c", f"exit {number}")

    assert [done.returncode for done in await asyncio.gather(*map(one, (3, 4, 5)))] == [3, 4, 5]
