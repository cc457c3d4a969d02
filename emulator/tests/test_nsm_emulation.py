# SPDX-License-Identifier: Apache-2.0
"""The emulated NSM: the rules of the registers, documents that the real verifier takes, and faults that it refuses."""

import datetime
import hashlib
import os
import socket
import stat
import threading

import cbor2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from enclavekit_attestation.policy import Policy
from enclavekit_attestation.verify import verify_document
from enclavekit_core.errors import ConfigError, DeviceError, InputError, VerificationError
from enclavekit_emulator.faults import Fault
from enclavekit_emulator.nsm_authority import dev_root_path, ensure_dev_root, make_root
from enclavekit_emulator.nsm_server import serve_nsm
from enclavekit_emulator.nsm_service import NsmService
from enclavekit_emulator.pcr_bank import PcrBank
from enclavekit_nsm import messages as nsm
from enclavekit_nsm.client import LENGTH, NsmClient
from hypothesis import given
from hypothesis import strategies as st
from pycose.headers import Algorithm
from pycose.keys import EC2Key
from pycose.messages import Sign1Message

MODULE = "i-0123456789abcdef-enc0123456789abcdef"
PCRS = {0: b"\x01" * 48, 1: b"\x02" * 48, 2: b"\x03" * 48, 4: b"\x04" * 48}
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def root():
    return make_root(NOW - datetime.timedelta(days=1))


class Clock:
    def __init__(self, now=NOW):
        self.now = now

    def __call__(self):
        return self.now


def service(root, *faults, clock=None):
    return NsmService(PcrBank(PCRS), root, MODULE, clock=clock or Clock(), faults=frozenset(faults))


def ask(service, request):
    return nsm.decode_response(service.handle(nsm.encode_request(request)))


def attest(service, **inputs):
    return ask(service, nsm.AttestationRequest(**inputs)).document


def verify(document, root, *, now=NOW, nonce=None, pcrs=PCRS):
    pem = root.certificate.public_bytes(serialization.Encoding.DER)
    return verify_document(document, Policy(pcrs=pcrs), now_ms=int(now.timestamp() * 1000), root=pem, nonce=nonce)


def test_registers_extend_as_on_nitro():
    bank = PcrBank()
    assert bank.extend(16, b"\1\2\3").hex() == (
        "cb178fcd3f328244c05c6248723fd068b3a1dda878e1ab8be911098f199958add55d0c27f04826d27b44d949a650694e"
    )


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (nsm.ExtendPcrRequest(0, b"x"), "ReadOnlyIndex"),
        (nsm.ExtendPcrRequest(15, b"x"), "ReadOnlyIndex"),
        (nsm.LockPcrRequest(15), "ReadOnlyIndex"),
        (nsm.LockPcrRequest(32), "InvalidIndex"),
        (nsm.DescribePcrRequest(32), "InvalidIndex"),
        (nsm.ExtendPcrRequest(99, b"x"), "InvalidIndex"),
        (nsm.LockPcrsRequest(33), "InvalidIndex"),
        (nsm.AttestationRequest(nonce=bytes(1025)), "InputTooLarge"),
    ],
)
def test_rules_answer_with_their_error(root, request_, code):
    assert ask(service(root), request_) == nsm.ErrorResponse(nsm.ErrorCode(code))


def test_locks_hold_and_show_in_documents(root):
    device = service(root)
    assert ask(device, nsm.DescribeNsmRequest()).locked_pcrs == tuple(range(16))
    extended = ask(device, nsm.ExtendPcrRequest(16, b"config")).data
    assert extended == hashlib.sha384(bytes(48) + b"config").digest()
    assert ask(device, nsm.LockPcrRequest(16)) == nsm.LockPcrResponse()
    assert ask(device, nsm.LockPcrRequest(16)) == nsm.ErrorResponse(nsm.ErrorCode.READ_ONLY_INDEX)
    assert ask(device, nsm.ExtendPcrRequest(16, b"late")) == nsm.ErrorResponse(nsm.ErrorCode.READ_ONLY_INDEX)
    verified = verify(attest(device), root)
    assert sorted(verified.pcrs) == list(range(17))
    assert verified.pcrs[16] == extended
    assert ask(device, nsm.LockPcrsRequest(32)) == nsm.LockPcrsResponse()
    assert ask(device, nsm.DescribeNsmRequest()).locked_pcrs == tuple(range(32))


def test_document_carries_what_was_asked_for_and_verifies(root):
    document = attest(service(root), user_data=b"u" * 1024, nonce=b"n" * 1024, public_key=b"k" * 1024)
    verified = verify(document, root, nonce=b"n" * 1024)
    assert (verified.user_data, verified.public_key) == (b"u" * 1024, b"k" * 1024)
    assert verified.timestamp_ms == int(NOW.timestamp() * 1000)


def test_document_bytes_have_the_shape_of_real_ones(root):
    document = attest(service(root))
    assert document[:6].hex() == "8444a1013822"
    protected, unprotected, payload, signature = cbor2.loads(document)
    assert (protected.hex(), unprotected, len(signature)) == ("a1013822", {}, 96)
    assert payload[0] == 0xA9
    assert list(cbor2.loads(payload)) == (
        ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle", "public_key", "user_data", "nonce"]
    )
    assert b"\x69timestamp\x1b" in payload
    assert all(len(der) <= 1024 for der in cbor2.loads(payload)["cabundle"])


def test_pycose_agrees_on_the_signature(root):
    document = attest(service(root), nonce=b"n")
    key = x509.load_der_x509_certificate(cbor2.loads(cbor2.loads(document)[2])["certificate"]).public_key()
    numbers = key.public_numbers()
    # not Sign1Message.decode: pycose 1.1 wants a list where cbor2 6 gives what is tagged as a tuple
    message = Sign1Message.from_cose_obj(cbor2.loads(document), True)
    message.key = EC2Key(crv="P_384", x=numbers.x.to_bytes(48, "big"), y=numbers.y.to_bytes(48, "big"))
    assert message.phdr[Algorithm].fullname == "ES384"
    assert message.verify_signature()


def test_one_leaf_serves_until_it_is_about_to_expire(root):
    clock = Clock()
    device = service(root, clock=clock)

    def leaf():
        return cbor2.loads(cbor2.loads(attest(device))[2])["certificate"]

    first = leaf()
    clock.now = NOW + datetime.timedelta(hours=2)
    assert leaf() == first
    clock.now = NOW + datetime.timedelta(hours=2, minutes=56)
    assert leaf() != first
    verify(attest(device), root, now=clock.now)


def test_clock_that_is_set_back_gets_a_leaf_of_its_time(root):
    clock = Clock()
    device = service(root, clock=clock)
    attest(device)
    clock.now = NOW - datetime.timedelta(hours=5)
    verify(attest(device), root, now=clock.now)


def test_expired_leaf_is_the_only_thing_wrong_with_it(root):
    payload = cbor2.loads(cbor2.loads(attest(service(root, Fault.EXPIRED_LEAF)))[2])
    *authorities, leaf = map(x509.load_der_x509_certificate, [*payload["cabundle"], payload["certificate"]])
    assert all(certificate.not_valid_before_utc <= NOW < certificate.not_valid_after_utc for certificate in authorities)
    assert leaf.not_valid_after_utc == NOW.replace(microsecond=0) - datetime.timedelta(hours=1)


@pytest.mark.parametrize("module_id", ["", "i-1", "i-1-enc", "i-1-encxyz", "i-1-enc1\n", "i-1-enc" + "0" * 17])
def test_module_id_that_no_leaf_can_carry_is_refused_at_once(root, module_id):
    with pytest.raises(ValueError, match="module id"):
        NsmService(PcrBank(), root, module_id)


@pytest.mark.parametrize("fault", ["expired-leaf", "wrong-root", "zero-pcrs", "reordered-bundle"])
def test_verifier_refuses_what_a_faulty_nsm_signs(root, fault):
    with pytest.raises(VerificationError):
        verify(attest(service(root, Fault(fault))), root, pcrs={})


def test_unknown_fault_is_named(tmp_path):
    with pytest.raises(ConfigError, match="'sleepy'"):
        NsmService.for_enclave(PCRS, MODULE, str(tmp_path), faults=("sleepy",))


@given(st.binary(max_size=300))
def test_any_request_gets_a_response(data):
    device = NsmService(PcrBank(), None, MODULE, clock=Clock())  # no root is needed before the first document
    try:
        if isinstance(nsm.decode_request(data), nsm.AttestationRequest):
            return
    except Exception:
        pass
    nsm.decode_response(device.handle(data))


def test_dev_root_is_made_once_and_private(tmp_path):
    state = str(tmp_path / "state")
    made = []
    threads = [threading.Thread(target=lambda: made.append(ensure_dev_root(state))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({issuer.certificate for issuer in made}) == 1
    assert len(made) == 6
    assert stat.S_IMODE(os.stat(f"{state}/dev-root/root.key").st_mode) == 0o600
    assert os.listdir(state) == ["dev-root"]
    with open(dev_root_path(state), "rb") as source:
        assert x509.load_pem_x509_certificate(source.read()) == made[0].certificate
    os.chmod(f"{state}/dev-root/root.key", 0o644)
    with pytest.raises(InputError, match="others may read"):
        ensure_dev_root(state)


@pytest.fixture
def device_path(tmp_path, root):
    path = str(tmp_path / "nsm")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = serve_nsm(listener, service(root))
    yield path
    server.close()


def test_socket_serves_several_clients(device_path, root):
    with NsmClient.open(device_path) as one, NsmClient.open(device_path) as two:
        assert len(one.get_random()) == 256
        verify(two.attestation(nonce=b"n"), root, nonce=b"n")
        with pytest.raises(DeviceError, match="ReadOnlyIndex"):
            one.lock_pcr(0)
        assert two.describe_pcr(0).data == PCRS[0]


@pytest.mark.parametrize("raw", [b"\0\0", LENGTH.pack(10) + b"abc", LENGTH.pack(2**31), b"\xff" * 64])
def test_hostile_client_harms_nobody_else(device_path, raw):
    hostile = socket.socket(socket.AF_UNIX)
    hostile.connect(device_path)
    hostile.sendall(raw)
    with NsmClient.open(device_path) as nsm_:
        assert len(nsm_.get_random()) == 256
    hostile.close()


def test_close_ends_clients_and_listener(tmp_path, root):
    path = str(tmp_path / "nsm")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = serve_nsm(listener, service(root))
    with NsmClient.open(path) as client:
        client.get_random()
        server.close()
        with pytest.raises(DeviceError):
            client.get_random()
    with pytest.raises(DeviceError):
        NsmClient.open(path)
