# SPDX-License-Identifier: Apache-2.0
"""What PID 1 asks the NSM, held against the library that everybody else uses."""

import os
import secrets
import socket
import struct
import threading
import time

import cbor2
import pytest
from enclavekit_core.errors import DeviceError, EnclavekitError, RemoteProtocolError
from enclavekit_enclave_init.boot import nsm_answers, nsm_boot
from enclavekit_enclave_init.boot.clock_policy import Correction, decide_correction
from enclavekit_nsm import messages
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_800_000_000.0


def document(milliseconds):
    payload = {
        "module_id": "i-1",
        "digest": "SHA384",
        "timestamp": milliseconds,
        "pcrs": {0: bytes(48)},
        "x": [1, None],
    }
    return cbor2.dumps([b"\xa1\x01\x38\x22", {}, cbor2.dumps(payload), bytes(96)])


def answer(variant, **fields):
    return cbor2.dumps({variant: fields})


DOCUMENT = answer("Attestation", document=document(1234567890123))


def test_questions_are_the_library_s():
    assert messages.encode_request(messages.GetRandomRequest()) == nsm_answers.ASK_RANDOM
    assert messages.encode_request(messages.AttestationRequest()) == nsm_answers.ASK_DOCUMENT


def test_answers_are_read():
    assert nsm_answers.parse_random(answer("GetRandom", random=b"seed" * 64)) == b"seed" * 64
    assert nsm_answers.parse_timestamp(DOCUMENT) == 1234567890.123
    tagged = answer("Attestation", document=b"\xd2" + document(5000))
    assert nsm_answers.parse_timestamp(tagged) == 5.0


@pytest.mark.parametrize("end", range(len(DOCUMENT)))
def test_answer_cut_anywhere_is_refused(end):
    with pytest.raises(RemoteProtocolError):
        nsm_answers.parse_timestamp(DOCUMENT[:end])


@pytest.mark.parametrize(
    "data",
    [
        answer("GetRandom", random="text"),
        answer("GetRandom", other=b""),
        answer("Attestation", document=b""),
        cbor2.dumps({"Error": "InternalError"}),
        cbor2.dumps("GetRandom"),
        b"\xbf\xff",
        b"\xa1\x69GetRandom\xa1\x66random\x5b" + b"\xff" * 8,
        b"\x81" * 4000,
    ],
)
def test_wrong_answers_are_refused(data):
    for parse in (nsm_answers.parse_random, nsm_answers.parse_timestamp):
        with pytest.raises(RemoteProtocolError):
            parse(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_refused(data):
    for parse in (nsm_answers.parse_random, nsm_answers.parse_timestamp):
        try:
            parse(data)
        except RemoteProtocolError:
            pass


@pytest.mark.parametrize(
    ("nsm", "took", "ptp", "step", "slew", "notes"),
    [
        (0.0, 0.01, None, 0, 0, 0),
        (0.05, 0.0, None, 0, 0, 0),
        (2.0, 4.0, None, 0, 0, 0),  # anywhere within the question and the answer
        (0.3, 0.0, None, 0, 0.3, 1),
        (-0.3, 0.0, -0.3, 0, -0.3, 1),
        (3600.0, 0.0, None, 3600, 0, 1),
        (-86400.0, 0.0, -86400.0, -86400, 0, 1),
        (0.0, 0.0, 30.0, 0, 0, 1),  # the PTP clock is not believed
    ],
)
def test_clock_policy(nsm, took, ptp, step, slew, notes):
    found = decide_correction(NOW, NOW + nsm, NOW + took, ptp)
    assert (found.step_s, found.slew_s) == (pytest.approx(step), pytest.approx(slew))
    assert len(found.notes) == notes


@pytest.mark.parametrize("took", [5.1, -0.1])
def test_answer_that_took_too_long_says_nothing(took):
    with pytest.raises(ValueError):
        decide_correction(NOW, NOW, NOW + took, None)


def test_correction_defaults_to_none():
    assert Correction() == Correction(0.0, 0.0, ())


@pytest.fixture
def nsm(tmp_path):
    """A socket that answers as the emulator's does; `answers` maps the question."""
    path, answers = str(tmp_path / "nsm"), {}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                (length,) = struct.unpack(">I", sock.recv(4))
                reply = answers[sock.recv(length)]()
                sock.sendall(struct.pack(">I", len(reply)) + reply)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield path, answers
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may credit entropy")
def test_entropy_is_credited(nsm):
    path, answers = nsm
    answers[nsm_answers.ASK_RANDOM] = lambda: answer("GetRandom", random=secrets.token_bytes(256))
    try:
        assert nsm_boot.seed_entropy(path).startswith("2048 bits")
    except PermissionError:
        pytest.skip("root here may not credit entropy")


@pytest.mark.parametrize("reply", [answer("GetRandom", random=b"short"), cbor2.dumps({"Error": "InternalError"})])
def test_nsm_that_gives_no_seed_fails(nsm, reply):
    path, answers = nsm
    answers[nsm_answers.ASK_RANDOM] = lambda: reply
    with pytest.raises(EnclavekitError):
        nsm_boot.seed_entropy(path)


def test_clock_that_agrees_is_left_alone(nsm):
    path, answers = nsm
    # the time is taken between question and answer, so that no delay makes a difference
    answers[nsm_answers.ASK_DOCUMENT] = lambda: answer("Attestation", document=document(int(time.time() * 1000)))
    try:
        assert "agrees" in nsm_boot.check_clock(path)
    except DeviceError as exc:
        assert "took" in str(exc)  # a machine under such load says nothing about the time


def test_without_an_nsm_nothing_is_done(tmp_path):
    assert "no NSM" in nsm_boot.seed_entropy(str(tmp_path / "none"))
    assert "no NSM" in nsm_boot.check_clock(str(tmp_path / "none"))
