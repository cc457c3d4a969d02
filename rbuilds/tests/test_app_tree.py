# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import stat

import pytest
from enclavekit_rbuilds.app.inodes import Content, Inode, TreeError, directory
from enclavekit_rbuilds.app.tree import AppTree, split_path
from hypothesis import given
from hypothesis import strategies as st


def regular() -> Inode:
    return Inode(stat.S_IFREG | 0o644, content=Content(b"somewhere", 5, 7))


def symlink(target: bytes) -> Inode:
    return Inode(stat.S_IFLNK | 0o777, content=target)


def names(tree: AppTree) -> list[bytes]:
    return [node.path for node in tree.walk()]


@pytest.mark.parametrize("raw", [b"../x", b"a/../../x", b"a/..", b"a\0b", b"n" * 256, b"a/" * 2049])
def test_split_path_refuses_what_leads_out_or_fits_nowhere(raw: bytes) -> None:
    with pytest.raises(TreeError):
        split_path(raw)


def test_split_path_drops_leading_slashes_and_dots() -> None:
    assert split_path(b"//./a//b/") == (b"a", b"b")


def test_walk_gives_parents_first_in_byte_order_whatever_the_order_of_placing() -> None:
    one, two = AppTree(), AppTree()
    paths = [(b"b",), (b"a", b"z"), (b"a", b"b"), (b"a-b",), (b"B",)]
    for path in paths:
        one.place(path, regular())
    for path in reversed(paths):
        two.place(path, regular())
    assert names(one) == names(two) == sorted(names(one)) == [b"B", b"a", b"a-b", b"a/b", b"a/z", b"b"]


def test_parents_that_are_links_are_followed_inside_the_tree() -> None:
    tree = AppTree()
    tree.place((b"usr", b"lib"), directory())
    tree.place((b"lib",), symlink(b"/usr/lib"))
    tree.place((b"lib", b"libc.so"), regular())
    assert names(tree) == [b"lib", b"usr", b"usr/lib", b"usr/lib/libc.so"]


@pytest.mark.parametrize("target", [b"/../../etc", b"../../../etc"])
def test_a_link_that_points_out_of_the_root_ends_inside_it(target: bytes) -> None:
    tree = AppTree()
    tree.place((b"etc",), directory())
    tree.place((b"out",), symlink(target))
    tree.place((b"out", b"passwd"), regular())
    assert b"etc/passwd" in names(tree)


def test_a_loop_of_links_leads_nowhere() -> None:
    tree = AppTree()
    tree.place((b"a",), symlink(b"b"))
    tree.place((b"b",), symlink(b"a"))
    assert tree.resolve((b"a",)) is None
    with pytest.raises(TreeError, match="link to nowhere"):
        tree.place((b"a", b"x"), regular())


def test_hide_removes_lower_layers_only() -> None:
    tree = AppTree()
    tree.place((b"d", b"old"), regular(), layer=1)
    tree.place((b"d", b"new"), regular(), layer=2)
    tree.hide_children((b"d",), layer=2)
    assert names(tree) == [b"d", b"d/new"]
    tree.hide((b"d",), layer=3)
    assert names(tree) == []


def test_a_file_replaces_a_directory_and_a_directory_keeps_its_children() -> None:
    tree = AppTree()
    tree.place((b"d", b"x"), regular())
    tree.place((b"d",), directory(0o700), layer=1)
    assert names(tree) == [b"d", b"d/x"]
    tree.place((b"d",), regular(), layer=2)
    assert names(tree) == [b"d"]


@given(st.lists(st.tuples(st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=4), st.booleans())))
def test_any_sequence_of_entries_gives_a_tree_whose_names_all_resolve(entries: list[tuple[list[bytes], bool]]) -> None:
    tree = AppTree()
    for parts, is_link in entries:
        try:
            tree.place(tuple(parts), symlink(b"../" * 5 + parts[0]) if is_link else directory())
        except TreeError:
            pass  # a parent that is a link to nowhere
    for node in tree.walk():
        assert tree.find(tuple(node.path.split(b"/"))) == node
