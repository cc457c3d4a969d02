# SPDX-License-Identifier: Apache-2.0
"""Resolution in the app's root, by the kernel and by the walk for old kernels: never out of it."""

import os

import pytest
from enclavekit_core.errors import InputError
from enclavekit_pipeline.enclave.root import Root


@pytest.fixture
def root(tmp_path):
    app = tmp_path / "app"
    (app / "etc").mkdir(parents=True)
    (app / "data/deep").mkdir(parents=True)
    (app / "data/file").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (app / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:101:202::/home/web:/bin/sh\nbad:x:y:z::/:\n:\n")
    (app / "etc/group").write_text("root:x:0:\nstaff:x:50:\n")
    for name, target in {
        "absolute": str(tmp_path / "secret"),
        "climb": "../../../../../../" + str(tmp_path / "secret"),
        "parent": "..",
        "inside": "/data/file",
        "loop": "loop",
        "magic": "/proc/self/root",
    }.items():
        os.symlink(target, app / "data" / name)
    return Root(str(app))


def read(descriptor):
    with open(descriptor, "rb") as source:
        return source.read()


def test_names_mean_what_they_mean_in_there(root):
    assert read(root.open("/data/file", os.O_RDONLY)) == b"inside"
    assert read(root.open("/data/inside", os.O_RDONLY)) == b"inside"
    assert read(root.open("/../../data/deep/../file", os.O_RDONLY)) == b"inside"


@pytest.mark.parametrize("name", ["absolute", "climb", "loop", "magic/etc/passwd", "parent/../../secret"])
def test_nothing_leads_out(root, name):
    with pytest.raises(OSError):
        os.close(root.open(f"/data/{name}", os.O_RDONLY))
    with pytest.raises(OSError):
        os.close(root._walk(f"/data/{name}", os.O_RDONLY, 0))


def test_walk_of_old_kernels_follows_no_link_and_no_dots(root):
    assert read(root._walk("/data/./file", os.O_RDONLY, 0)) == b"inside"
    for name in ("/data/inside", "/data/parent/etc/passwd", "/data/../data/file"):
        with pytest.raises(OSError):
            os.close(root._walk(name, os.O_RDONLY, 0))


def test_names_of_descriptors_are_free_of_links(root):
    descriptor = root.open("/data/parent/data/inside", os.O_RDONLY)
    assert root.name_of(descriptor) == "/data/file"
    os.close(descriptor)
    outside = os.open("/", os.O_RDONLY)
    with pytest.raises(OSError):
        root.name_of(outside)
    os.close(outside)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("web", (101, 202, "/home/web")),
        ("101", (101, 202, "/home/web")),
        ("web:staff", (101, 50, "/home/web")),
        ("7", (7, 7, "/")),
        ("7:8", (7, 8, "/")),
    ],
)
def test_users_are_the_roots_own(root, text, ids):
    assert root.find_user(text) == ids


@pytest.mark.parametrize("text", ["nobody-here", "web:nogroup", "web:", "", "-1", "4294967295", "web:4294967296", "²"])
def test_users_that_are_not_there(root, text):
    with pytest.raises(InputError):
        root.find_user(text)
