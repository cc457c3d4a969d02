# SPDX-License-Identifier: Apache-2.0
"""Which host ids an enclave gets."""

import dataclasses

from enclavekit_emulator.id_map import FIRST_SHIFTED_ID, IDS_PER_ENCLAVE, Account, Range, parse_sub_ids, plan_id_map

ALL_IDS = ((0, 4294967295),)
ROOT = Account(0, 0, "root", ALL_IDS, None, None, has_tools=True)
USER = Account(1000, 1000, "me", ALL_IDS, (100000, 65536), (200000, 65536), has_tools=True)


def test_root_never_maps_the_hosts_root():
    first, second = plan_id_map(ROOT, 0), plan_id_map(ROOT, 1)
    assert first.uids == (Range(0, FIRST_SHIFTED_ID, IDS_PER_ENCLAVE),)
    assert first.root_uid + IDS_PER_ENCLAVE == second.root_uid
    assert not first.is_single and not first.note


def test_root_of_a_container_without_these_ids_gets_a_single_one():
    planned = plan_id_map(dataclasses.replace(ROOT, mapped_ids=((0, 65536),), has_tools=False), 0)
    assert planned.is_single and planned.note


def test_user_takes_subordinate_ids():
    planned = plan_id_map(USER, 5)
    assert planned.uids == (Range(0, 1000, 1), Range(1, 100000, 65535))
    assert planned.gids == (Range(0, 1000, 1), Range(1, 200000, 65535))
    assert planned.tool and not planned.is_single


def test_user_without_them_is_told_what_does_not_work():
    for missing in ({"subuids": None}, {"subgids": None}, {"has_tools": False}):
        planned = plan_id_map(dataclasses.replace(USER, **missing), 0)
        assert planned.uids == (Range(0, 1000, 1),)
        assert planned.is_single and "cannot start" in planned.note


def test_parse_sub_ids():
    text = "you:1:2\nme:100000:65536\nme:5:5\nbroken\n1001:7:8\n"
    assert parse_sub_ids(text, "me", 1000) == (100000, 65536)
    assert parse_sub_ids(text, "other", 1001) == (7, 8)
    assert parse_sub_ids(text, "nobody", 9) is None
    assert parse_sub_ids("me:0:65536\n", "me", 1000) is None  # the host's root is nobody's subordinate
