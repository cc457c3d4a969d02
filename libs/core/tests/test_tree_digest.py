# SPDX-License-Identifier: Apache-2.0
import hashlib

import pytest
from enclavekit_core.errors import LocalProtocolError
from enclavekit_core.tree_digest import NO_DIGEST, Kind, TreeEntry, digest_of_directory, digest_of_link
from hypothesis import given
from hypothesis import strategies as st

D1, D2 = b"\1" * 64, b"\2" * 64
A, B = TreeEntry(b"a", Kind.FILE, 0o644, D1), TreeEntry(b"b", Kind.FILE, 0o600, D2)


def test_bytes_that_are_hashed():
    expected = b"enclavekit-tree-v1\0" + b"\1" + b"\x01\xa4" + b"\0\1" + b"a" + D1 + b"\1" + b"\x01\x80" + b"\0\1b" + D2
    assert digest_of_directory([B, A]) == hashlib.sha3_512(expected).digest()
    assert digest_of_directory([]) == hashlib.sha3_512(b"enclavekit-tree-v1\0").digest()
    assert digest_of_link(b"/x") == hashlib.sha3_512(b"/x").digest()


@pytest.mark.parametrize(
    "other",
    [
        TreeEntry(b"aa", Kind.FILE, 0o644, D1),
        TreeEntry(b"a", Kind.LINK, 0o644, D1),
        TreeEntry(b"a", Kind.FILE, 0o645, D1),
        TreeEntry(b"a", Kind.FILE, 0o4644, D1),
        TreeEntry(b"a", Kind.FILE, 0o644, D2),
        TreeEntry(b"a", Kind.OTHER, 0o644, NO_DIGEST),
    ],
)
def test_name_type_mode_and_content_each_count(other):
    assert digest_of_directory([A]) != digest_of_directory([other])


def test_mode_of_a_link_and_the_type_bits_do_not():
    link = TreeEntry(b"a", Kind.LINK, 0o777, D1)
    assert digest_of_directory([link]) == digest_of_directory([TreeEntry(b"a", Kind.LINK, 0, D1)])
    assert digest_of_directory([A]) == digest_of_directory([TreeEntry(b"a", Kind.FILE, 0o100644, D1)])


ENTRIES = st.lists(
    st.builds(
        TreeEntry, st.binary(min_size=1, max_size=3), st.sampled_from(Kind), st.just(0), st.sampled_from([D1, D2])
    ),
    unique_by=lambda entry: entry.name,
    max_size=4,
).map(lambda found: [entry for entry in found if not set(entry.name) & set(b"/\0.")])


@given(ENTRIES, ENTRIES)
def test_only_equal_directories_have_equal_digests(one, other):
    same = sorted(one, key=lambda entry: entry.name) == sorted(other, key=lambda entry: entry.name)
    assert (digest_of_directory(one) == digest_of_directory(other)) == same


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(LocalProtocolError):
        digest_of_directory([TreeEntry(name, Kind.FILE, 0, D1)])


def test_name_twice_and_short_digest_are_refused():
    for entries in ([A, A], [TreeEntry(b"a", Kind.FILE, 0, b"short")]):
        with pytest.raises(LocalProtocolError):
            digest_of_directory(entries)
