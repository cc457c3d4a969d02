# SPDX-License-Identifier: Apache-2.0
import json
import os

import pytest
from enclavekit_attestation import Policy, load_measurements, load_policy
from enclavekit_attestation.policy import parse_pcr, parse_pcrs
from enclavekit_core.errors import ConfigError

HEX = "ab" * 48
PCR = bytes.fromhex(HEX)
ZERO = "00" * 48


def test_policy_from_describe_eif_output(data_dir):
    path = os.path.join(data_dir, "nitro-cli-describe-eif.json")
    with open(path) as source:
        described = json.load(source)
    policy = load_measurements(path)
    assert policy == Policy.from_measurements(described) == Policy.from_measurements(described["Measurements"])
    assert policy.pcrs[0].hex() == described["Measurements"]["PCR0"]
    assert policy.identifies_code


@pytest.mark.parametrize(
    "measurements",
    [
        {},
        {"PCR3": HEX},
        {"PCR1": HEX},
        {"PCR0": HEX[2:]},
        {"PCR0": ZERO},
        {"PCR0": 1},
        {"Measurements": []},
        {"x": HEX},
    ],
)
def test_measurements_that_pin_nothing_are_refused(measurements):
    with pytest.raises(ConfigError):
        Policy.from_measurements(measurements)


@pytest.mark.parametrize(("pcrs", "whole"), [((), False), ((0,), True), ((1,), False), ((1, 2), True), ((8,), False)])
def test_identifies_code(pcrs, whole):
    assert Policy(dict.fromkeys(pcrs, PCR)).identifies_code is whole


@pytest.mark.parametrize("pcrs", [{32: PCR}, {-1: PCR}, {0: PCR[:-1]}, {0: bytes(48)}, {2: bytes(48)}])
def test_policy_refuses_pcrs_that_no_image_has(pcrs):
    with pytest.raises(ConfigError):
        Policy(pcrs)


@pytest.mark.parametrize("age", [0, -1, float("inf"), float("nan")])
def test_policy_refuses_ages_that_mean_nothing(age):
    with pytest.raises(ConfigError):
        Policy(max_age_s=age)


def test_policy_with_pcrs_refuses_contradictions():
    assert Policy({0: PCR}).with_pcrs({0: PCR, 1: PCR}).pcrs == {0: PCR, 1: PCR}
    with pytest.raises(ConfigError, match="two different"):
        Policy({0: PCR}).with_pcrs({0: PCR[::-1][:-1] + b"\0"})


@pytest.mark.parametrize("name", ["0", "PCR0", "pcr0", 0])
def test_parse_pcr_names(name):
    assert parse_pcr(name, HEX.upper()) == (0, PCR)


@pytest.mark.parametrize("name", ["", "00", "x", "PCR", "0 ", "100", "٣", True, None])
def test_parse_pcr_refuses_names(name):
    with pytest.raises(ConfigError):
        parse_pcr(name, HEX)


def test_parse_pcrs_refuses_the_same_pcr_twice():
    with pytest.raises(ConfigError, match="twice"):
        parse_pcrs({"0": HEX, "PCR0": HEX})


def test_load_policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(f"pcrs:\n  0: {HEX}\n  PCR8: '{HEX}'\nallow_debug: true\nmax_age_s: 10\n")
    assert load_policy(str(path)) == Policy({0: PCR, 8: PCR}, allow_debug=True, max_age_s=10)
    path.write_text(json.dumps({"pcrs": {"0": HEX}}))
    assert load_policy(str(path)) == Policy({0: PCR})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pcrs: []",
        "pcrs: {0: xyz}",
        f"pcrs: {{0: {HEX}}}\nallow_debgu: true",
        "pcrs: {}\nallow_debug: 1",
        "- 1",
        "{",
    ],
)
def test_load_policy_refuses(tmp_path, text):
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"policy\.yaml"):
        load_policy(str(path))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_load_measurements_refuses(tmp_path, content):
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"m\.json"):
        load_measurements(str(path))
    with pytest.raises(ConfigError, match="no such file"):
        load_measurements(str(tmp_path / "none"))
