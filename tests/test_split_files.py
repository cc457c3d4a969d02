# SPDX-License-Identifier: Apache-2.0
"""A real image with files that its archive cannot hold boots in a real enclave, and not at all with a damaged part.

The limit is 4 GiB; `pack_app(max_part_bytes=...)` makes it small, everything else is as it is.
"""

import hashlib
import os
import secrets
import stat
import subprocess

import pytest
import zstandard
from enclavekit_core.split_files import LIST_PATH, decode_file_list
from enclavekit_eif.cpio import iter_cpio
from enclavekit_eif.reader import read_eif
from enclavekit_eif.writer import write_eif
from enclavekit_rbuilds.app.directory import read_directory
from enclavekit_rbuilds.image.ramdisk import AppFile, pack_app

from .conftest import start_enclave

pytestmark = pytest.mark.xdist_group("enclave")

PART_BYTES = 1_000_000  # busybox is larger, so the app's own program is split too
CONTENT = secrets.token_bytes(3 * PART_BYTES + 12345)
CAPABILITY = bytes.fromhex("0100000200040000" + "00" * 12)  # cap_net_bind_service=ep


@pytest.fixture(scope="module")
def split(shell, notes):
    """Return a function that makes the demo's image anew with small parts; `damage` may change what is packed."""
    root = shell.directory / "split.rootfs"
    subprocess.run(["cp", "-a", shell.directory / "notes.rootfs", root], check=True)
    (root / "srv").mkdir(exist_ok=True)
    (root / "srv/model").write_bytes(CONTENT)
    (root / "srv/model").chmod(0o640)
    (root / "srv/again").hardlink_to(root / "srv/model")
    eif = read_eif(str(notes))
    files, sections = [], []
    for entry in iter_cpio(eif.open_section(eif.ramdisks[1])):
        name = os.fsdecode(entry.name)
        if not name.startswith("rootfs") and (stat.S_ISREG(entry.mode) or name == "data"):
            content = entry.data.read() if stat.S_ISREG(entry.mode) else None
            files.append(AppFile(entry.name, content, entry.uid, entry.gid))
    for name, section in (("kernel", eif.kernel), ("framework", eif.ramdisks[0])):
        sections.append(shell.directory / f"split.{name}")
        with eif.open_section(section) as source:
            sections[-1].write_bytes(source.read())

    def make(damage=lambda raw: raw):
        tree = read_directory(str(root))
        ramdisk = shell.directory / "split.app"
        pack_app(tree, files, str(ramdisk), "none", max_part_bytes=PART_BYTES)
        ramdisk.write_bytes(zstandard.compress(damage(ramdisk.read_bytes())))
        path = shell.directory / "split.eif"
        ramdisks = [sections[1], ramdisk]
        write_eif(path, kernel=sections[0], cmdline=eif.cmdline(), ramdisks=ramdisks, metadata=eif.metadata)
        return path

    return make


def list_of(path):
    eif = read_eif(str(path))
    for entry in iter_cpio(eif.open_section(eif.ramdisks[1])):
        if entry.name == LIST_PATH[1:].encode():
            return decode_file_list(entry.data.read())
    raise AssertionError("the image has no list")


def test_files_above_the_limit_are_whole_in_the_enclave(shell, split):
    image = split()
    listed = list_of(image)
    assert {"/rootfs/srv/again", "/rootfs/srv/model", "/rootfs/bin/busybox"} <= {
        n for f in listed.split for n in f.names
    }
    running = start_enclave(shell, image, "--enclave-name", "split")
    try:
        digest = hashlib.sha256(CONTENT).hexdigest()
        look = "busybox sha256sum /srv/model; busybox stat -c '%a %u %g %Y %h' /srv/again; busybox stat -c %Y /srv"
        lines = running.exec("sh", "-c", look).splitlines()
        assert lines == [f"{digest}  /srv/model", "640 0 0 0 2", "0"]
        system = running.pipeline("exec", "--system", running.cid, "--", "sh", "-c", "ls -A / | grep split; :")
        assert shell.output(*system) == ""
    finally:
        shell.run("nitro-emu", "terminate-enclave", "--enclave-id", running.id)


def test_a_damaged_part_ends_the_boot(shell, split):
    def damage(raw):
        assert raw.count(CONTENT[-1000:]) == 1
        return raw.replace(CONTENT[-1000:], CONTENT[-1001:-1])

    image = split(damage)
    before = shell.json("nitro-emu", "describe-enclaves")
    argv = ["nitro-emu", "run-enclave", "--eif-path", image, "--cpu-count", 2, "--memory", 1024, "--debug-mode"]
    done = shell.run(*argv, expect=None)
    assert done.returncode != 0 and b"E36" in done.stderr, done.stderr
    assert shell.json("nitro-emu", "describe-enclaves") == before


def test_file_capabilities_are_there_again(shell, split):
    root = shell.directory / "split.rootfs"
    try:
        os.setxattr(root / "bin/notes", "security.capability", CAPABILITY)
    except OSError:
        pytest.skip("file capabilities cannot be set here")
    image = split()
    [item] = list_of(image).capabilities
    assert (item.name, item.value) == ("/rootfs/bin/notes", CAPABILITY.hex())
    running = start_enclave(shell, image, "--enclave-name", "capable")
    try:
        read = "import os; print(os.getxattr('/rootfs/bin/notes', 'security.capability').hex())"
        argv = running.pipeline("exec", "--system", running.cid, "--", "python3", "-c", read)
        value = bytes.fromhex(shell.output(*argv).strip())
        # in a user namespace the kernel adds whose root it is for
        assert value[1:20] == CAPABILITY[1:]
    finally:
        shell.run("nitro-emu", "terminate-enclave", "--enclave-id", running.id)
