# SPDX-License-Identifier: Apache-2.0
"""The client against a device that is a function: the struct of the ioctl, the frames of the socket, every error."""

import ctypes
import errno
import os
import threading

import pytest
from enclavekit_core.errors import DeviceError, LocalProtocolError
from enclavekit_nsm import client, messages

PCR = bytes(range(48))


def memory(address, length):
    return (ctypes.c_char * length).from_address(address)


def device(answer):
    """An ioctl that answers as the driver does: writes into the caller's buffer and its real length into the struct."""
    seen = []

    def ioctl(_descriptor, number, argument):
        assert number == 0xC0200A00
        assert len(argument) == 32
        request, request_length, response, response_length = client.NSM_RAW.unpack(argument)
        seen.append(bytes(memory(request, request_length)))
        assert response_length == messages.MAX_RESPONSE_BYTES
        data = answer(seen[-1])
        memory(response, len(data))[:] = data
        argument[:] = client.NSM_RAW.pack(request, request_length, response, len(data))
        return 0

    return ioctl, seen


def open_with(ioctl):
    return client.NsmClient(client.IoctlChannel(os.open("/dev/null", os.O_RDWR), ioctl))


def test_ioctl_carries_request_and_response():
    ioctl, seen = device(lambda _: messages.encode_response(messages.DescribePcrResponse(True, PCR)))
    with open_with(ioctl) as nsm:
        assert nsm.describe_pcr(3) == messages.DescribePcrResponse(True, PCR)
    assert seen == [messages.encode_request(messages.DescribePcrRequest(3))]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (messages.encode_response(messages.ErrorResponse(messages.ErrorCode.READ_ONLY_INDEX)), "ReadOnlyIndex"),
        (messages.encode_response(messages.LockPcrsResponse()), "InvalidResponse"),
        (b"", "InvalidResponse"),
        (b"\xff", "InvalidResponse"),
    ],
)
def test_device_errors_carry_the_nsm_name(answer, status):
    ioctl, _ = device(lambda _: answer)
    with open_with(ioctl) as nsm, pytest.raises(DeviceError) as caught:
        nsm.extend_pcr(0, b"x")
    assert caught.value.status.startswith(status)
    assert str(caught.value).startswith("cannot extend PCR0 of /dev/nsm: ")


@pytest.mark.parametrize(("number", "status"), [(errno.EMSGSIZE, "InputTooLarge"), (errno.ETIMEDOUT, "timed out")])
def test_system_errors_become_device_errors(number, status):
    def ioctl(*_):
        raise OSError(number, os.strerror(number))

    with open_with(ioctl) as nsm, pytest.raises(DeviceError) as caught:
        nsm.get_random()
    assert status in caught.value.status


def test_too_large_a_request_never_reaches_the_device():
    ioctl, seen = device(lambda _: b"")
    with open_with(ioctl) as nsm, pytest.raises(DeviceError, match="InputTooLarge"):
        nsm.extend_pcr(16, bytes(5000))
    assert seen == []


def test_response_length_beyond_the_buffer_is_refused():
    def ioctl(_descriptor, _number, argument):
        fields = client.NSM_RAW.unpack(argument)
        argument[:] = client.NSM_RAW.pack(*fields[:3], messages.MAX_RESPONSE_BYTES + 1)
        return 0

    with open_with(ioctl) as nsm, pytest.raises(DeviceError, match=r"InvalidResponse: .* reports 12289 bytes"):
        nsm.get_random()


def test_socket_carries_every_call(fake_nsm):
    with client.NsmClient.open(fake_nsm.path) as nsm:
        assert nsm.describe_nsm().locked_pcrs == tuple(range(16))
        assert nsm.describe_pcr(20) == messages.DescribePcrResponse(False, b"\x14" * 48)
        assert nsm.extend_pcr(16, b"x" * 48) == b"x" * 48
        nsm.lock_pcr(16)
        nsm.lock_pcrs(32)
        assert nsm.attestation(b"u", b"n", b"k") == b"u|n|k"
        assert nsm.get_random() == bytes(range(256))
    assert fake_nsm.requests[3:5] == [messages.LockPcrRequest(16), messages.LockPcrsRequest(32)]
    assert fake_nsm.connections == 1


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (None, "connection reset by peer"),
        (b"\0\0\0\5abc", "timed out"),
        (b"\xff\xff\xff\xff", "InvalidResponse"),
        (b"\0\0\x30\1", "InvalidResponse"),
        (b"\0\0\0\0", "InvalidResponse"),
    ],
)
def test_socket_errors_are_device_errors_and_the_next_call_works(fake_nsm, raw, status):
    good, fake_nsm.answer = fake_nsm.answer, lambda _: raw
    with client.NsmClient.open(fake_nsm.path, timeout_s=0.2) as nsm:
        with pytest.raises(DeviceError) as caught:
            nsm.get_random()
        assert caught.value.status.startswith(status)
        fake_nsm.answer = good
        assert nsm.attestation(nonce=b"n") == b"|n|"


def test_late_answer_is_never_taken_for_the_next_one(fake_nsm):
    """A document with another caller's nonce would be the worst of answers."""
    late, good = threading.Event(), fake_nsm.answer

    def answer(request):
        if request.nonce == b"first":
            late.wait()
        return good(request)

    fake_nsm.answer = answer
    with client.NsmClient.open(fake_nsm.path, timeout_s=0.1) as nsm:
        with pytest.raises(DeviceError, match="timed out"):
            nsm.attestation(nonce=b"first")
        late.set()
        for _ in range(3):
            assert nsm.attestation(nonce=b"second") == b"|second|"


def test_threads_share_a_client(fake_nsm):
    wrong = []
    with client.NsmClient.open(fake_nsm.path) as nsm:

        def ask(name):
            for number in range(20):
                nonce = b"%d-%d" % (name, number)
                if nsm.attestation(nonce=nonce) != b"|" + nonce + b"|":
                    wrong.append(nonce)

        threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(fake_nsm.requests) == 80


def test_path_longer_than_a_socket_name_holds(fake_nsm, tmp_path):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    os.rename(fake_nsm.path, deep / "nsm")
    with client.NsmClient.open(str(deep / "nsm")) as nsm:
        assert nsm.get_random() == bytes(range(256))


def test_closed_client_says_so_and_closes_nothing_twice():
    ioctl, seen = device(lambda _: b"")
    nsm = open_with(ioctl)
    nsm.close()
    reused = os.open("/dev/null", os.O_RDWR)  # takes the number that the device had
    nsm.close()
    with pytest.raises(DeviceError, match="bad file descriptor"):
        nsm.get_random()
    os.close(reused)
    assert seen == []


@pytest.mark.parametrize("index", [-1, 65536])
def test_index_that_no_request_can_hold_is_our_own_error(index):
    ioctl, seen = device(lambda _: b"")
    with open_with(ioctl) as nsm, pytest.raises(LocalProtocolError):
        nsm.lock_pcr(index)
    assert seen == []


def test_open_says_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(DeviceError, match="no such file"):
        client.NsmClient.open(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    monkeypatch.setenv(client.DEVICE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="no such device"):
        client.NsmClient.open()
