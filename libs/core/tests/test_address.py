# SPDX-License-Identifier: Apache-2.0
import pytest
from enclavekit_core.address import (
    TcpAddress,
    UnixAddress,
    VsockAddress,
    parse_address,
    parse_cid,
    parse_listed_address,
)
from enclavekit_core.errors import ConfigError

GOOD = {
    "vsock://16:53000": VsockAddress(16, 53000),
    "vsock://any:1": VsockAddress(0xFFFFFFFF, 1),
    "vsock://parent:9000": VsockAddress(3, 9000),
    "vsock://hypervisor:0": VsockAddress(0, 0),
    "vsock://local:4294967295": VsockAddress(1, 0xFFFFFFFF),
    "unix:///run/init.sock": UnixAddress("/run/init.sock"),
    "tcp://localhost:80": TcpAddress("localhost", 80),
    "tcp://[::1]:443": TcpAddress("::1", 443),
}


@pytest.mark.parametrize(("text", "address"), GOOD.items())
def test_address_round_trips(text, address):
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "scheme", "address"),
    [("127:8443", "vsock", VsockAddress(127, 8443)), ("127.0.0.1:8888", "tcp", TcpAddress("127.0.0.1", 8888))],
)
def test_address_accepts_the_forms_of_the_rust_tools(text, scheme, address):
    assert parse_address(text, scheme) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "16:1",
        "http://x:1",
        "vsock://16",
        "vsock://:1",
        "vsock://16:",
        "vsock://16:-1",
        "vsock://16:4294967296",
        "vsock://four:1",
        "vsock://١٦:1",
        "tcp://:80",
        "tcp://host:65536",
        "tcp://host",
        "unix://relative",
    ],
)
def test_address_refuses_with_its_own_text_in_the_message(text):
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)
    assert caught.value.exit_code == 2


def test_cid_names():
    assert [parse_cid(name) for name in ("hypervisor", "local", "parent", "any", "42")] == [0, 1, 3, 0xFFFFFFFF, 42]


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:8443", "tcp://[::1]:0", "unix:///run/a.sock"])
def test_listed_address(text):
    assert str(parse_listed_address(text, "list")) == text


@pytest.mark.parametrize(
    "text", ["h:1", "tcp://h:01", "tcp://::1:1", "vsock://3:1", "unix:///a//b", "unix:///a/../b", "unix:///a/"]
)
def test_listed_address_has_one_form(text):
    with pytest.raises(ConfigError):
        parse_listed_address(text, "list")
