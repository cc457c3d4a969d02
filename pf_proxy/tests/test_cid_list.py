# SPDX-License-Identifier: Apache-2.0
"""The list of CIDs in a file: it follows the file, and admits nobody when in doubt."""

import os
import socket

import pytest
from enclavekit_core.address import CID_ANY, CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.errors import EnclavekitError
from enclavekit_core.streams import connect
from enclavekit_pf_proxy.cid_list import CidList

PATIENCE_S = 20.0


def replace(path, text):
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)


def test_list_follows_the_file(tmp_path):
    path = tmp_path / "cids"
    path.write_text("127\n\n128\n")
    cids = CidList(str(path))
    assert 127 in cids and 129 not in cids and sorted(cids) == [127, 128] and len(cids) == 2
    replace(path, "129\nparent\n")
    assert 129 in cids and CID_PARENT in cids and 127 not in cids
    for broken in ("12x\n", None):
        if broken is None:
            path.unlink()
        else:
            replace(path, broken)
        assert 129 not in cids and list(cids) == []
    replace(path, "129")
    assert 129 in cids


@pytest.mark.parametrize("text", [None, "all\n", "-1\n"])
def test_a_list_that_cannot_be_used_is_refused_at_the_start(tmp_path, text):
    path = tmp_path / "cids"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EnclavekitError) as caught:
        CidList(str(path))
    assert caught.value.exit_code == 2


def test_proxy_admits_who_was_added_meanwhile(run_proxy, tmp_path):
    path = tmp_path / "cids"
    path.write_text("16\n")
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.settimeout(PATIENCE_S)
        target = TcpAddress("127.0.0.1", upstream.getsockname()[1])
        with run_proxy(VsockAddress(CID_ANY, 7001), target, allowed_cids=CidList(str(path))):
            with connect(VsockAddress(CID_PARENT, 7001)) as client:
                client.settimeout(PATIENCE_S)
                assert client.recv(1) == b""
            replace(path, "16\n3\n")
            with connect(VsockAddress(CID_PARENT, 7001)) as client:
                served, _ = upstream.accept()
                with served:
                    client.sendall(b"x")
                    assert served.recv(1) == b"x"
