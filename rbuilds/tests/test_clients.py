# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest
import yaml
from enclavekit_core.errors import ConfigError, InputError
from enclavekit_rbuilds.manifest.clients import (
    PROFILES,
    USUAL_VERBS,
    VERBS,
    Client,
    Fence,
    check_client,
    parse_authorization,
    render_clients,
)
from enclavekit_rbuilds.manifest.merge import CLIENT_RULES
from enclavekit_rbuilds.manifest.model import ClientEntry, Verb


@pytest.mark.parametrize(
    ("suffix", "allow", "system"),
    [
        ("", list(USUAL_VERBS), False),
        (":exec", ["exec"], False),
        (":cp-out,exec,exec", ["exec", "cp-out"], False),
        (":all", list(VERBS), True),
        (":shell", ["shell"], False),
        (":dial,exec", ["exec", "dial"], False),
        (":control", [], False),
        (":control,exec", ["exec"], False),
    ],
)
def test_verbs(certificate, suffix: str, allow: list[str], system: bool) -> None:
    client = parse_authorization(f"{certificate('alice')}{suffix}")
    assert (client.name, client.allow, client.system) == ("alice", allow, system)
    assert client.control == (["all"] if "control" in suffix else [])


def test_the_file_holds_the_certificate(certificate) -> None:
    path = certificate("alice")
    clients = yaml.safe_load(render_clients([parse_authorization(str(path))]))["clients"]
    assert clients[0]["certificate"] == path.read_text()


def test_the_pipeline_accepts_the_file(certificate, tmp_path: Path) -> None:
    module = pytest.importorskip("enclavekit_pipeline.enclave.clients", reason="pipeline is not installed")
    path = tmp_path / "clients.yaml"
    path.write_bytes(render_clients([parse_authorization(f"{certificate('alice')}:all")]))
    assert module.Clients.load(str(path))


def test_verbs_and_fields_are_those_that_the_pipeline_knows() -> None:
    module = pytest.importorskip("enclavekit_pipeline.enclave.clients", reason="pipeline is not installed")
    assert get_args(Verb) == VERBS == module.VERBS
    assert PROFILES == module.PROFILES
    assert Fence.__struct_fields__ == module.Fence.__struct_fields__
    assert {"certificate", "name", "allow", *CLIENT_RULES} == set(ClientEntry.__struct_fields__)
    assert set(Client.__struct_fields__) <= set(module.Grant.__struct_fields__)
    assert get_args(Verb) == VERBS


@pytest.mark.parametrize("suffix", [":", ":root", ":exec,rm"])
def test_unknown_verbs_are_refused(certificate, suffix: str) -> None:
    with pytest.raises(InputError, match="cannot authorize"):
        parse_authorization(f"{certificate('alice')}{suffix}")


def test_a_private_key_never_gets_into_an_image(certificate, tmp_path: Path) -> None:
    both = tmp_path / "both.crt"
    both.write_bytes(certificate("alice").read_bytes() + (tmp_path / "alice.key").read_bytes())
    with pytest.raises(InputError, match="private key"):
        parse_authorization(str(both))


def test_damaged_and_missing_certificates_are_refused(certificate, tmp_path: Path) -> None:
    text = certificate("alice").read_text()
    for content in ("", "hello", text[: len(text) // 2], text.replace("MII", "AAA", 1), text + text):
        (tmp_path / "bad.crt").write_text(content)
        with pytest.raises(InputError):
            parse_authorization(str(tmp_path / "bad.crt"))
    with pytest.raises(InputError, match="no such file"):
        parse_authorization(str(tmp_path / "none.crt"))


def test_two_clients_of_one_name_are_refused(certificate, tmp_path: Path) -> None:
    first = certificate("alice")
    os.mkdir(tmp_path / "other")
    other = tmp_path / "other" / "alice.crt"
    other.write_bytes(certificate("bob").read_bytes())
    with pytest.raises(InputError, match="two certificates"):
        render_clients([parse_authorization(str(first)), parse_authorization(str(other))])


def test_one_certificate_under_two_names_is_refused(certificate, tmp_path: Path) -> None:
    first = certificate("alice")
    other = tmp_path / "bob.crt"
    other.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match="twice"):
        render_clients([parse_authorization(str(first)), parse_authorization(str(other))])


@pytest.mark.parametrize(
    "rule",
    [
        {"read": ["data"]},
        {"write": ["/a/../b"]},
        {"landlock": Fence(read=["x"])},
        {"seccomp": "some"},
        {"memory_max": "much", "user": "app"},
        {"memory_max": 0, "user": "app"},
        {"tasks_max": 0, "user": "app"},
        {"cpu_quota": "0.5", "user": "app"},
        {"cpu_quota": "50%"},
    ],
)
def test_rules_that_the_listener_would_refuse_are_refused_at_build_time(rule: dict) -> None:
    with pytest.raises(ConfigError):
        check_client(Client("a", "PEM", ["exec"], **rule), "test")
