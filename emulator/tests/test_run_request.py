# SPDX-License-Identifier: Apache-2.0
"""nitro-cli's rules for run-enclave."""

import json

import pytest
from enclavekit_emulator.nitro_errors import NitroError
from enclavekit_emulator.run_request import (
    MIB,
    RunRequest,
    boot_timeout_s,
    check_cid,
    check_memory,
    check_name,
    choose_cpu_ids,
    default_name,
    parse_config,
    parse_cpu_ids,
    parse_memory_mib,
    unique_name,
)


@pytest.mark.parametrize(
    ("text", "mib"), [("512", 512), ("512m", 512), ("512M", 512), ("2g", 2048), ("2G", 2048), ("1t", 1048576)]
)
def test_parse_memory_takes_nitro_cli_suffixes(text, mib):
    assert parse_memory_mib(text) == mib


@pytest.mark.parametrize("text", ["", "m", "1k", "1.5g", "-1", "0x10", "1gg", "٣"])
def test_parse_memory_refuses_the_rest(text):
    with pytest.raises(NitroError) as caught:
        parse_memory_mib(text)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("cid", [-1, 1, 2, 3, 0xFFFFFFFF, 2**32])
def test_check_cid_refuses_reserved(cid):
    with pytest.raises(NitroError) as caught:
        check_cid(cid)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("cid", [0, 4, 16, 0xFFFFFFFE])
def test_check_cid_passes_the_rest(cid):
    assert check_cid(cid) == cid


def test_cpu_ids():
    assert parse_cpu_ids(["1", "3"]) == (1, 3)
    assert choose_cpu_ids(2) == (1, 2)
    for wrong, number in ((["1", "1"], 20), (["x"], 23), (["-1"], 23)):
        with pytest.raises(NitroError) as caught:
            parse_cpu_ids(wrong)
        assert caught.value.exit_code == number
    with pytest.raises(NitroError):
        choose_cpu_ids(0)


def test_names():
    assert default_name("/x/app.eif") == "app"
    assert default_name("/x/app") == "app"
    assert unique_name("a", {"b"}) == "a"
    assert unique_name("a", {"a"}) == "a_1"
    assert unique_name("a", {"a", "a_1"}) == "a_2"
    for wrong in ("", "a\nb", "x" * 256):
        with pytest.raises(NitroError) as caught:
            check_name(wrong)
        assert caught.value.exit_code == 58


def request(memory_mib):
    return RunRequest(eif_path="a.eif", memory_mib=memory_mib, cpu_ids=(1,))


@pytest.mark.parametrize(
    ("memory_mib", "eif_bytes", "machine_mib", "number"),
    [
        (64, 16 * MIB, 1024, None),
        (64, 16 * MIB + 1, 1024, 26),
        (63, 1, 1024, 26),
        (2048, 1, 1024, 27),
    ],
)
def test_memory_is_four_times_the_image(memory_mib, eif_bytes, machine_mib, number):
    if number is None:
        check_memory(request(memory_mib), eif_bytes, machine_mib * MIB)
        return
    with pytest.raises(NitroError) as caught:
        check_memory(request(memory_mib), eif_bytes, machine_mib * MIB)
    assert caught.value.exit_code == number


def test_memory_error_names_what_is_needed():
    with pytest.raises(NitroError, match="404 MiB"):
        check_memory(request(100), 100 * MIB + 1, 1 << 40)


def test_boot_timeout_is_nitro_clis_sum():
    assert boot_timeout_s(1, 64) == 180
    assert boot_timeout_s((6 << 30) + 1, 64) == 270
    assert boot_timeout_s(1, (100 << 10) + 1) == 270


def test_config_file():
    config = {
        "eif_path": "/x/app.eif",
        "memory_mib": 512,
        "cpu_ids": [1, 3],
        "enclave_cid": 20,
        "attach_console": True,
        "unknown": "is ignored",
    }
    assert parse_config(json.dumps(config).encode(), "c.json") == RunRequest(
        eif_path="/x/app.eif",
        memory_mib=512,
        cpu_ids=(1, 3),
        cid=20,
        debug_mode=True,
        attach_console=True,
        name="app",
    )


GOOD = {"eif_path": "a.eif", "memory_mib": 64, "cpu_count": 2}


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ({"eif_path": None}, 3),
        ({"memory_mib": None}, 3),
        ({"memory_mib": "64"}, 3),
        ({"memory_mib": True}, 3),
        ({"cpu_count": None}, 3),
        ({"cpu_ids": [1]}, 3),
        ({"cpu_count": None, "cpu_ids": [1, 1]}, 20),
        ({"debug_mode": "yes"}, 3),
        ({"enclave_cid": 3}, 3),
        ({"enclave_name": ""}, None),
    ],
)
def test_config_file_refuses_wrong_values(change, number):
    text = json.dumps({**GOOD, **change}).encode()
    if number is None:
        assert parse_config(text, "c.json").name == "a"
        return
    with pytest.raises(NitroError) as caught:
        parse_config(text, "c.json")
    assert caught.value.exit_code == number


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe"])
def test_config_file_must_be_a_json_object(text):
    with pytest.raises(NitroError) as caught:
        parse_config(text, "c.json")
    assert caught.value.exit_code == 17
