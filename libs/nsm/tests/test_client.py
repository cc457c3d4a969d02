# SPDX-License-Identifier: Apache-2.0
"""The client against a device that is a function: the struct of the ioctl, the frames of the socket, every error."""

import ctypes
import errno
import os
import socket
import threading

import pytest
from enclavekit_core.errors import DeviceError
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

    with open_with(ioctl) as nsm, pytest.raises(Exception, match="reports"):
        nsm.get_random()


@pytest.fixture
def socket_device(tmp_path):
    """Serve raw bytes, ready-made, to whoever connects."""
    path = str(tmp_path / "nsm")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve(raw):
        def run():
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(raw)

        threading.Thread(target=run, daemon=True).start()
        return path

    yield serve
    listener.close()


def test_socket_frames(socket_device):
    answer = messages.encode_response(messages.GetRandomResponse(bytes(256)))
    with client.NsmClient.open(socket_device(client.LENGTH.pack(len(answer)) + answer)) as nsm:
        assert nsm.get_random() == bytes(256)


@pytest.mark.parametrize("raw", [b"", b"\0\0", b"\0\0\0\5abc"])
def test_socket_that_ends_early_is_a_device_error(socket_device, raw):
    with client.NsmClient.open(socket_device(raw)) as nsm, pytest.raises(DeviceError):
        nsm.get_random()


def test_socket_that_announces_too_much_is_refused(socket_device):
    with client.NsmClient.open(socket_device(b"\xff\xff\xff\xff")) as nsm, pytest.raises(Exception, match="announces"):
        nsm.get_random()


def test_open_says_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(DeviceError, match="no such file"):
        client.NsmClient.open(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    monkeypatch.setenv(client.DEVICE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="no such device"):
        client.NsmClient.open()
