# SPDX-License-Identifier: Apache-2.0
"""The list of all files: its root is that of the tree as it is, and proofs hold against it and nothing else."""

import base64
import json
import os
import secrets

import pytest
from enclavekit_attestation.binding import read_state
from enclavekit_attestation.manifest_proof import check_proof
from enclavekit_attestation.policy import Policy
from enclavekit_attestation.verify import verify
from enclavekit_core.errors import VerificationError
from enclavekit_core.tree_digest import Kind, TreeEntry, digest_of_directory, digest_of_link
from enclavekit_ra_web_srv.manifest import Directory, ListedFile, build_manifest

from .conftest import PCRS, sha3


def digest_of_tree(path):
    """The plain definition, by recursion over the file system."""
    entries = []
    for name in os.listdir(path):
        info = os.lstat(below := path / name)
        mode = info.st_mode & 0o7777
        if below.is_symlink():
            entries.append(TreeEntry(name.encode(), Kind.LINK, 0, digest_of_link(os.readlink(below).encode())))
        elif below.is_dir():
            entries.append(TreeEntry(name.encode(), Kind.DIRECTORY, mode, digest_of_tree(below)))
        elif below.is_file():
            digest = bytes.fromhex(sha3(below.read_bytes()))
            entries.append(TreeEntry(name.encode(), Kind.FILE, mode, digest))
        else:
            entries.append(TreeEntry(name.encode(), Kind.OTHER, mode, bytes(64)))
    return digest_of_directory(entries)


def root_over(path):
    """The digest of `/` if there were nothing but the way to `path`."""
    digest, mode = digest_of_tree(path), path.stat().st_mode & 0o7777
    while path.parent != path:
        digest = digest_of_directory([TreeEntry(path.name.encode(), Kind.DIRECTORY, mode, digest)])
        path, mode = path.parent, 0
    return digest


@pytest.fixture
def tree(data):
    (data / "a/b").mkdir(parents=True)
    (data / "empty").mkdir()
    for name, content in (("a/b/deep", b"1"), ("a/file", b"22"), ("z", b"")):
        (data / name).write_bytes(content)
    (data / "link").symlink_to("/etc/passwd")
    os.mkfifo(data / "fifo")
    return data


def manifest_of(server, tree, **query):
    """The manifest once it is that of the tree as it is."""
    return server.until(
        lambda: server.get("/manifest", **query),
        lambda answer: answer.json.get("manifest_root") == root_over(tree).hex(),
    ).json


def test_manifest_is_the_tree_and_follows_it(server, tree, nsm):
    found = manifest_of(server, tree)
    assert [(file["path"], file["size"], file["sha3_hash"]) for file in found["files"]] == [
        (str(tree / name), len(content), sha3(content))
        for name, content in (("a/b/deep", b"1"), ("a/file", b"22"), ("z", b""))
    ]
    assert (found["total_files"], found["next"]) == (3, None)
    (tree / "a/file").write_bytes(b"changed")
    (tree / "z").unlink()
    os.chmod(tree / "empty", 0o700)
    nonce = secrets.token_hex(20)
    found = manifest_of(server, tree, nonce=nonce)
    assert [file["path"] for file in found["files"]] == [str(tree / "a/b/deep"), str(tree / "a/file")]
    report = verify(
        base64.b64decode(found["attestation_document"]),
        Policy(dict(PCRS)),
        nonce=bytes.fromhex(nonce),
        root=nsm.root_der,
    )
    assert json.loads(report.document.user_data) == {
        "purpose": "enclavekit/manifest/1",
        "manifest_root": found["manifest_root"],
        "files": 2,
        "made_at_ms": found["made_at_ms"],
    }
    answer = server.get("/attestation", nonce=nonce).json
    assert answer["manifest_root"] == found["manifest_root"]
    report = verify(base64.b64decode(answer["attestation_document"]), Policy(dict(PCRS)), root=nsm.root_der)
    assert read_state(report.document.user_data, "ra-web-srv") == {
        name: answer[name] for name in ("vrf_cipher_suite", "vrf_public_key", "manifest_root")
    }


def test_pages_stay_with_one_root(server, tree):
    root = manifest_of(server, tree)["manifest_root"]
    seen, after = [], ""
    while after is not None:
        page = server.get("/manifest", root=root, limit=1, after=after).json
        assert page["manifest_root"] == root
        assert (page["attestation_document"] is None) == bool(after)
        seen += [file["path"] for file in page["files"]]
        after = page["next"]
        (tree / f"new{len(seen)}").write_bytes(b"")
        manifest_of(server, tree)
    assert seen == [str(tree / name) for name in ("a/b/deep", "a/file", "z")]
    assert server.get("/manifest", root="00" * 64).status == 404


def test_proofs_of_what_is_there_and_what_is_not(server, tree):
    root = bytes.fromhex(manifest_of(server, tree)["manifest_root"])
    for name, kind in (("a/b/deep", Kind.FILE), ("a/b", Kind.DIRECTORY), ("link", Kind.LINK), ("fifo", Kind.OTHER)):
        proof = server.get("/manifest/proof", path=str(tree / name)).json
        assert proof["present"] is True
        assert check_proof(root, str(tree / name), proof["directories"]).kind is kind
    deep = server.get("/manifest/proof", path=str(tree / "a/b/deep")).json["directories"]
    assert check_proof(root, str(tree / "a/b/deep"), deep).digest.hex() == sha3(b"1")
    for name in ("missing", "a/missing", "a/missing/deeper", "z/below a file", "link/x"):
        proof = server.get("/manifest/proof", path=str(tree / name)).json
        assert proof["present"] is False
        assert check_proof(root, str(tree / name), proof["directories"]) is None
    assert server.get("/manifest/proof", path="/etc/passwd").status == 403
    # no lie passes: neither way cut short, nor names left out, added or changed, nor another root
    path = str(tree / "a/b/deep")
    lies = [deep[:-1], deep[1:], [], [*deep[:-1], {**deep[-1], "entries": []}]]
    changed = json.loads(json.dumps(deep))
    changed[-1]["entries"][0]["digest"] = "00" * 64
    lies.append(changed)
    for lie in lies:
        with pytest.raises(VerificationError):
            check_proof(root, path, lie)
    with pytest.raises(VerificationError):
        check_proof(bytes(64), path, deep)
    with pytest.raises(VerificationError):
        check_proof(root, str(tree / "empty/x"), deep)


def test_several_roots_and_roots_in_each_other():
    def leaf(name):
        return TreeEntry(name, Kind.FILE, 0o644, bytes(63) + b"\1")

    found = [
        Directory(b"/srv/a", 0o755, (leaf(b"f"),)),
        Directory(b"/srv/b", 0o700, (TreeEntry(b"in", Kind.DIRECTORY, 0o711, bytes(64)),)),
        Directory(b"/srv/b/in", 0o711, (leaf(b"g"),)),
        Directory(b"/x", 0o755, ()),
    ]
    files = [ListedFile(b"/srv/b/in/g", 1, bytes(64)), ListedFile(b"/srv/a/f", 1, bytes(64))]
    manifest = build_manifest(found, files, 0)
    inner = TreeEntry(b"in", Kind.DIRECTORY, 0o711, digest_of_directory([leaf(b"g")]))
    srv = [
        TreeEntry(b"a", Kind.DIRECTORY, 0o755, digest_of_directory([leaf(b"f")])),
        TreeEntry(b"b", Kind.DIRECTORY, 0o700, digest_of_directory([inner])),
    ]
    top = [
        TreeEntry(b"srv", Kind.DIRECTORY, 0, digest_of_directory(srv)),
        TreeEntry(b"x", Kind.DIRECTORY, 0o755, digest_of_directory([])),
    ]
    assert manifest.root == digest_of_directory(top)
    assert [file.path for file in manifest.files] == [b"/srv/a/f", b"/srv/b/in/g"]
    assert build_manifest([], [], 0).root == digest_of_directory([])
    whole = build_manifest([Directory(b"/", 0o755, (leaf(b"f"),))], [], 0)
    assert whole.root == digest_of_directory([leaf(b"f")])
