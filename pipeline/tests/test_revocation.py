# SPDX-License-Identifier: Apache-2.0
"""Who is kept out although the measured list has them: revoked, or inside too often."""

import asyncio
import json

import pytest
from enclavekit_attestation.revocation import SETTING, Revocations, parse_revoked
from enclavekit_core.errors import RemoteProtocolError, VerificationError
from enclavekit_pipeline.host.session import Session, connected
from hypothesis import given
from hypothesis import strategies as st

from .conftest import grant, listening

KEY = bytes(range(32))


@pytest.fixture
def revoked(tmp_path):
    def revoked(values, schema=None):
        schema = {SETTING: {"type": "string"}} if schema is None else schema
        (tmp_path / "schema").write_text(json.dumps(schema))
        if values is not None:
            (tmp_path / "values").write_text(values if isinstance(values, str) else json.dumps(values))
        return Revocations(str(tmp_path / "schema"), str(tmp_path / "values"))

    return revoked


def test_image_without_the_setting_revokes_nobody(revoked, tmp_path):
    Revocations(str(tmp_path / "none"), str(tmp_path / "none")).check("alice", KEY)
    revoked({}, schema={"LEVEL": {"type": "string"}}).check("alice", KEY)


@pytest.mark.parametrize("value", ["", "bob", "bob, carol\n", "ab" * 32])
def test_others_on_the_list(revoked, value):
    revoked({SETTING: value}).check("alice", KEY)


@pytest.mark.parametrize("value", ["alice", "bob alice", f"bob,{KEY.hex()}", KEY.hex().upper()])
def test_revoked_by_name_or_key(revoked, value):
    with pytest.raises(VerificationError, match="alice is revoked"):
        revoked({SETTING: value}).check("alice", KEY)


@pytest.mark.parametrize(
    "values",
    [
        None,
        {},
        {SETTING: 7},
        {SETTING: None},
        {SETTING: "alice; bob"},
        {SETTING: "-x"},
        {SETTING: "é"},
        "nonsense",
        "[]",
    ],
)
def test_list_that_is_missing_or_malformed_keeps_everybody_out(revoked, values):
    with pytest.raises(VerificationError, match=r"has not come|malformed"):
        revoked(values).check("alice", KEY)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text):
    try:
        names, keys = parse_revoked(text)
    except VerificationError:
        return
    assert all(name in text for name in names)
    assert all(key.hex() in text.lower() for key in keys)


async def test_revoked_client_does_not_enter_and_others_do(inside, target_for, revoked, tmp_path):
    revoked(None)
    files = ["--runtime-schema", tmp_path / "schema", "--runtime-values", tmp_path / "values"]
    alice, bob = target_for("alice", 24), target_for("bob", 24)
    with listening(inside, [grant(inside, "alice"), grant(inside, "bob")], cid=24, flags=files):
        with pytest.raises(RemoteProtocolError, match="has not come yet"):
            await Session.enter(alice)
        revoked({SETTING: "bob"})
        async with connected(alice) as session:
            assert await session.ping() > 0
        with pytest.raises(RemoteProtocolError, match="bob is revoked"):
            await Session.enter(bob)


async def test_client_enters_as_often_as_the_list_says(inside, target_for):
    alice, bob = target_for("alice", 24), target_for("bob", 24)
    with listening(inside, [grant(inside, "alice", sessions=2), grant(inside, "bob")], cid=24):
        async with connected(alice), connected(alice):
            with pytest.raises(RemoteProtocolError, match="alice is inside 2 times"):
                await Session.enter(alice)
            async with connected(bob):
                pass
        async with asyncio.timeout(20):
            while True:  # until the enclave has seen the two leave
                try:
                    async with connected(alice) as session:
                        assert await session.ping() > 0
                        return
                except RemoteProtocolError:
                    await asyncio.sleep(0)
