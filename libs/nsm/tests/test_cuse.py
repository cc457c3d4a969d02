# SPDX-License-Identifier: Apache-2.0
"""The rounds of CUSE for one NSM ioctl, byte by byte."""

import errno
import struct

import pytest
from enclavekit_nsm import cuse
from enclavekit_nsm.client import NSM_IOCTL_RAW, NSM_RAW
from enclavekit_nsm.messages import MAX_REQUEST_BYTES
from hypothesis import given
from hypothesis import strategies as st

ARGUMENT, REQUEST_AT, RESPONSE_AT = 0x7FFF_0000, 0x1000, 0x2000
REQUEST, RESPONSE = b"\x69GetRandom", b"\xa1random"


def kernel(opcode, body=b"", unique=7):
    return cuse.parse_request(cuse.IN_HEADER.pack(40 + len(body), opcode, unique, 0, 0, 0, 1, 0) + body)


def ioctl(data=b"", command=NSM_IOCTL_RAW, room=0):
    return kernel(cuse.Opcode.IOCTL, cuse.IOCTL_IN.pack(0, 0, command, ARGUMENT, len(data), room) + data)


def raw(request_size=None, room=0x3000):
    return NSM_RAW.pack(REQUEST_AT, len(REQUEST) if request_size is None else request_size, RESPONSE_AT, room)


def split(reply):
    length, error, unique = cuse.OUT_HEADER.unpack_from(reply)
    assert (length, unique) == (len(reply), 7)
    return -error, reply[cuse.OUT_HEADER.size :]


def never(request):
    raise AssertionError("nothing was to be asked")


def vectors(body):
    result, flags, read, written = cuse.IOCTL_OUT.unpack_from(body)
    assert (result, flags) == (0, cuse.IOCTL_RETRY)
    found = list(cuse.IOVEC.iter_unpack(body[cuse.IOCTL_OUT.size :]))
    return found[:read], found[read : read + written]


def test_the_handshake_asks_for_unrestricted_ioctls_and_names_the_device():
    reply = cuse.answer(kernel(cuse.Opcode.CUSE_INIT, cuse.INIT_IN.pack(7, 38, 0, 1)), "nsm", never)
    error, body = split(reply)
    assert error == 0 and len(body) == 72 + len("DEVNAME=nsm\0")
    assert struct.unpack_from("=IIII", body)[3] == 1
    assert body.endswith(b"DEVNAME=nsm\0")


def test_an_ioctl_takes_two_rounds_and_then_the_request():
    error, body = split(cuse.answer(ioctl(), "nsm", never))
    assert error == 0 and vectors(body) == ([(ARGUMENT, 32)], [(ARGUMENT, 32)])
    error, body = split(cuse.answer(ioctl(raw()), "nsm", never))
    assert error == 0 and vectors(body) == (
        [(ARGUMENT, 32), (REQUEST_AT, len(REQUEST))],
        [(ARGUMENT, 32), (RESPONSE_AT, 0x3000)],
    )
    asked = []
    reply = cuse.answer(ioctl(raw() + REQUEST, room=32 + 0x3000), "nsm", lambda m: asked.append(m) or RESPONSE)
    error, body = split(reply)
    assert error == 0 and asked == [REQUEST]
    assert (
        body
        == cuse.IOCTL_OUT.pack(0, 0, 0, 0)
        + NSM_RAW.pack(REQUEST_AT, len(REQUEST), RESPONSE_AT, len(RESPONSE))
        + RESPONSE
    )


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        (ioctl(command=0x1234), errno.ENOTTY),
        (ioctl(raw(request_size=0)), errno.EMSGSIZE),
        (ioctl(raw(request_size=MAX_REQUEST_BYTES + 1)), errno.EMSGSIZE),
        (ioctl(raw(request_size=100) + REQUEST), errno.EFAULT),
        (ioctl(raw(room=len(RESPONSE) - 1) + REQUEST), errno.ENOSPC),
        (kernel(cuse.Opcode.READ), errno.EINVAL),
        (kernel(cuse.Opcode.POLL), errno.EINVAL),
    ],
)
def test_what_is_refused_has_the_drivers_error(request_, number):
    assert split(cuse.answer(request_, "nsm", lambda _: RESPONSE))[0] == number


def test_a_device_that_cannot_be_reached_is_an_io_error():
    def broken(request):
        raise OSError(errno.EIO, "input/output error")

    assert split(cuse.answer(ioctl(raw() + REQUEST), "nsm", broken))[0] == errno.EIO


def test_some_requests_get_no_reply():
    assert cuse.answer(kernel(cuse.Opcode.INTERRUPT, bytes(8)), "nsm", never) is None


@given(st.binary(max_size=200))
def test_requests_cut_short_or_lengthened_are_noticed(data):
    whole = cuse.IN_HEADER.pack(40 + len(data), 14, 1, 0, 0, 0, 1, 0) + data
    assert cuse.parse_request(whole).body == data
    with pytest.raises(ValueError):
        cuse.parse_request(whole[:-1])
    with pytest.raises(ValueError):
        cuse.parse_request(whole + b"x")
