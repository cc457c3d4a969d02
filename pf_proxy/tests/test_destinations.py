# SPDX-License-Identifier: Apache-2.0
"""Where a host end connects to, and where it does not however the address is written."""

import ipaddress

import pytest
from enclavekit_core.errors import ConfigError
from enclavekit_pf_proxy.destinations import DestinationRules, Range, parse_range

GUARDED = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "169.254.169.254",
    "169.254.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "fe80::1",
    "ff02::1",
    "fd00:ec2::254",
]
OPEN = ["10.0.0.1", "192.168.1.1", "93.184.216.34", "2001:db8::1", "fd00::1", "::ffff:10.0.0.1"]


@pytest.mark.parametrize("text", GUARDED)
def test_guarded_addresses_need_to_be_named(text):
    address = ipaddress.ip_address(text)
    assert not DestinationRules().allows(address, 80)
    named = DestinationRules((Range(ipaddress.ip_network("0.0.0.0/0")), Range(ipaddress.ip_network("::/0"))))
    assert named.allows(address, 80)


@pytest.mark.parametrize("text", OPEN)
def test_other_addresses_are_open_unless_only_ranges_are(text):
    address = ipaddress.ip_address(text)
    assert DestinationRules().allows(address, 80)
    assert not DestinationRules(only=True).allows(address, 80)


def test_ports_are_part_of_a_range():
    rules = DestinationRules((parse_range("127.0.0.1:8443"), parse_range("[::1]:1-10")))
    assert rules.allows(ipaddress.ip_address("127.0.0.1"), 8443)
    assert rules.allows(ipaddress.ip_address("::ffff:127.0.0.1"), 8443)
    assert not rules.allows(ipaddress.ip_address("127.0.0.1"), 4222)
    assert not rules.allows(ipaddress.ip_address("127.0.0.2"), 8443)
    assert rules.allows(ipaddress.ip_address("::1"), 10)
    assert not rules.allows(ipaddress.ip_address("::1"), 11)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.0.0.1:5432", "fd00::/8", "[fd00::]:1-2", "[fd00::/8]"])
def test_ranges_parse(text):
    assert parse_range(text).first_port >= 1


@pytest.mark.parametrize(
    "text", ["", "host:1", "10.0.0.1/8", "10.0.0.1:0", "10.0.0.1:2-1", "10.0.0.1:x", "1.2.3.4:70000"]
)
def test_bad_ranges_are_refused(text):
    with pytest.raises(ConfigError, match="destination"):
        parse_range(text)
