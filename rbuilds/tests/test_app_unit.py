# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.app.accounts import Account, resolve_user
from enclavekit_rbuilds.app.directory import read_directory
from enclavekit_rbuilds.app.image_config import ImageConfig, Overrides
from enclavekit_rbuilds.app.tree import AppTree
from enclavekit_rbuilds.app.unit import make_unit, prepare_tree

ROOT = Account(0, 0, "/root")


@pytest.fixture
def tree(app: Path) -> AppTree:
    return read_directory(str(app))


def test_unit_holds_what_the_image_says(tree: AppTree) -> None:
    words = ("/bin/serve", "with space", 'quote"', "back\\slash", "new\nline", "ünï", "\x7f")
    config = ImageConfig(words[:1], words[1:], {"A": "b=c", "PATH": "/bin"}, "web", "/srv", "QUIT")
    account = resolve_user(tree, config.user)
    prepare_tree(tree, config, account)
    unit = tomllib.loads(make_unit(tree, config, account))
    assert unit["ExecStart"] == list(words)
    assert unit["Environment"] == ["PATH=/bin", "HOME=/srv", "A=b=c"]
    assert (unit["User"], unit["Group"], unit["WorkingDirectory"]) == ("33", "44", "/srv")
    assert (unit["StopSignal"], unit["RootDirectory"], unit["OnExit"]) == ("SIGQUIT", "/rootfs", "poweroff")
    assert unit["BindPaths"] == ["/data:/data"]


def test_the_init_accepts_the_unit(tree: AppTree) -> None:
    units = pytest.importorskip("enclavekit_enclave_init.units.unit", reason="enclave_init is not installed")
    config = ImageConfig(("serve",))
    prepare_tree(tree, config, ROOT)
    parsed = units.parse_unit("app", make_unit(tree, config, ROOT), "app.service")
    assert parsed.argv == ("/bin/serve",)
    assert parsed.powers_off


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("", (0, 0)),
        ("web", (33, 44)),
        ("33", (33, 44)),
        ("web:mail", (33, 8)),
        ("web:99", (33, 99)),
        ("1000", (1000, 0)),
        ("1000:1001", (1000, 1001)),
    ],
)
def test_user_becomes_numbers(tree: AppTree, user: str, ids: tuple[int, int]) -> None:
    account = resolve_user(tree, user)
    assert (account.uid, account.gid) == ids


@pytest.mark.parametrize("user", ["nobody", "web:nogroup", "4294967295", "-1", "web:-1"])
def test_unknown_users_are_refused(tree: AppTree, user: str) -> None:
    with pytest.raises(InputError, match="cannot use"):
        resolve_user(tree, user)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ImageConfig(), "no ENTRYPOINT"),
        (ImageConfig(("/bin/none",)), "not in the image"),
        (ImageConfig(("none",)), "not in the image"),
        (ImageConfig(("/srv/one",)), "not executable"),
        (ImageConfig(("/bin/serve",), working_directory="srv"), "not an absolute path"),
        (ImageConfig(("/bin/serve",), stop_signal="SIGNOTHING"), "no such signal"),
        (ImageConfig(("/bin/serve", "a\0b")), "NUL"),
        (ImageConfig(("/bin/serve", "\udcff")), "not valid Unicode"),
    ],
)
def test_what_could_not_start_is_refused(tree: AppTree, config: ImageConfig, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        prepare_tree(tree, config, ROOT)
        make_unit(tree, config, ROOT)


def test_working_directory_that_is_a_file_is_refused(tree: AppTree) -> None:
    config = ImageConfig(("/bin/serve",), working_directory="/srv/one")
    prepare_tree(tree, config, ROOT)
    with pytest.raises(InputError, match="not a directory"):
        make_unit(tree, config, ROOT)


def test_working_directory_is_made_for_the_user(tree: AppTree) -> None:
    prepare_tree(tree, ImageConfig(working_directory="/var/lib/app"), Account(33, 44, "/"))
    made = tree.find((b"var", b"lib", b"app"))
    assert made is not None and (made.inode.uid, made.inode.gid) == (33, 44)


def test_overrides_replace_and_add() -> None:
    image = ImageConfig(("/a",), ("b",), {"A": "1", "B": "2"}, "web")
    changed = Overrides(entrypoint=("/x",), environment={"B": "3", "C": "4"}, user="root").apply(image)
    assert changed.argv == ("/x",)
    assert changed.environment == {"A": "1", "B": "3", "C": "4"}
    assert changed.user == "root"
    assert Overrides(cmd=("y",)).apply(image).argv == ("/a", "y")
    assert Overrides().apply(image) == image
