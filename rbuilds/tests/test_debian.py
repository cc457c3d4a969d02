# SPDX-License-Identifier: Apache-2.0
"""Which mirror Debian's packages come from: the one that is named, else this machine's, else a clear word."""

import os

import pytest
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.framework.debian import MIRROR_VARIABLE, find_mirrors


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """An apt-get that knows these repositories."""

    def knows(*uris):
        program = tmp_path / "apt-get"
        program.write_text("#!/bin/sh\nprintf '%s\\n' " + " ".join(f"'{uri}'" for uri in uris) + "\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return knows


def test_named_mirror_goes_first(apt):
    apt("http://mirror.test/debian/")
    assert find_mirrors("http://other.test/") == ("http://other.test/debian", "http://other.test/debian-security")


def test_mirror_of_this_machine(apt):
    apt("http://tools.test/apt/", "http://mirror.test/debian-security/", "http://mirror.test/debian/")
    assert find_mirrors(None) == ("http://mirror.test/debian", "http://mirror.test/debian-security")


def test_machine_without_security_mirror_uses_its_neighbour(apt):
    apt("http://mirror.test/debian/")
    assert find_mirrors(None) == ("http://mirror.test/debian", "http://mirror.test/debian-security")


def test_no_debian_mirror_is_said(apt):
    apt("http://archive.test/ubuntu/")
    with pytest.raises(InputError, match=MIRROR_VARIABLE):
        find_mirrors(None)
