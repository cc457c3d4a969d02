# SPDX-License-Identifier: Apache-2.0
import re

import pytest
from enclavekit_core.bus import MAX_PATH_BYTES, key_of_path, path_of_key
from enclavekit_core.errors import InputError, RemoteProtocolError
from hypothesis import given
from hypothesis import strategies as st

PATHS = st.binary(max_size=60).map(lambda tail: b"/" + tail.replace(b"\0", b""))
AWKWARD = st.text("/.=aF0 \xff\n*>$", max_size=12).map(lambda tail: b"/" + tail.encode("latin-1"))


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (b"/data/report.txt", "/data/report.txt"),
        (b"/data/a=b-c_d", "/data/a=b-c_d"),
        (b"/data/.hidden", "/data/.hidden"),
        (b"/data/my file", "=/data/my=20file"),
        (b"/data/my=20file", "/data/my=20file"),
        (b"/data/a=b c", "=/data/a=3Db=20c"),
        (b"/data/a..b", "=/data/a=2E=2Eb"),
        (b"/data/ends.", "=/data/ends=2E"),
        (b"/data/*.>", "=/data/=2A.=3E"),
        ("/data/grün".encode(), "=/data/gr=C3=BCn"),
        (b"/data/\xff", "=/data/=FF"),
    ],
)
def test_key_of_path_table(path, key):
    assert key_of_path(path) == key
    assert path_of_key(key) == path


@given(st.one_of(PATHS, AWKWARD))
def test_key_is_legal_and_reversible(path):
    key = key_of_path(path)
    assert re.fullmatch(r"[-/_=.a-zA-Z0-9]+", key)
    assert all(key.split("."))  # no empty token in the subject
    assert path_of_key(key) == path


@given(st.one_of(PATHS, AWKWARD), st.one_of(PATHS, AWKWARD))
def test_two_paths_never_share_a_key(one, other):
    assert (key_of_path(one) == key_of_path(other)) == (one == other)


@given(st.text("/=.aAFf02 é", max_size=12))
def test_path_of_key_accepts_only_what_key_of_path_makes(key):
    try:
        path = path_of_key(key)
    except RemoteProtocolError:
        return
    assert key_of_path(path) == key


@pytest.mark.parametrize("key", ["", "=", "data/x", "=data", "=/a=2e", "=/a=41", "=/plain", "=/a=0", "/a b", "=/=00"])
def test_path_of_key_refuses(key):
    with pytest.raises(RemoteProtocolError, match="cannot read bus key"):
        path_of_key(key)


@pytest.mark.parametrize("path", [b"", b"data", b"./x", b"/a\0b", b"/" + b"a" * MAX_PATH_BYTES])
def test_key_of_path_refuses(path):
    with pytest.raises(InputError):
        key_of_path(path)
