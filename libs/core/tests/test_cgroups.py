# SPDX-License-Identifier: Apache-2.0
"""Groups of this machine where it lets us make some; a directory stands in for version 2, which few
machines have free.
"""

import os
import subprocess

import pytest
from enclavekit_core.cgroups import LEAF, Group, Hierarchy, Limits, find_hierarchies
from enclavekit_core.errors import InputError

NAME = f"test-{os.getpid()}"
HIERARCHIES = {name: one for name, one in find_hierarchies().items() if name == "pids"}
needs_groups = pytest.mark.skipif(not HIERARCHIES, reason="no cgroups with pids can be made here")


def test_limits_are_read_as_people_write_them():
    assert Limits.parse("512M", 100, "50%") == Limits(512 << 20, 100, 0.5)
    assert Limits.parse(4096, None, None).controllers == {"memory": True, "pids": False, "cpu": False}
    assert not Limits.parse(None, None, None)
    for wrong, key in (
        (("0", None, None), "memory_max"),
        (("1X", None, None), "memory_max"),
        ((True, None, None), "memory_max"),
        ((None, 0, None), "tasks_max"),
        ((None, "5", None), "tasks_max"),
        ((None, None, "0%"), "cpu_quota"),
        ((None, None, "1.5"), "cpu_quota"),
    ):
        with pytest.raises(ValueError, match=f"^{key}: "):
            Limits.parse(*wrong)


@needs_groups
def test_what_a_group_has_below_it_ends_with_it():
    group = Group(HIERARCHIES, NAME)
    below = Group(HIERARCHIES, f"{NAME}/a/b")
    for descriptor in (*group.make(Limits(tasks_max=5), "it"), *below.make(Limits(), "what is below")):
        os.close(descriptor)
    with subprocess.Popen(["sleep", "600"]) as process:
        for directory in below.directories:
            with open(f"{directory}/cgroup.procs", "w") as procs:
                procs.write(str(process.pid))
        assert group.pids == {process.pid}
        assert group.count_tasks() == 1
        group.remove()  # it is not empty: nothing goes that has something in it
        assert below.pids == {process.pid}
        group.kill()
        assert process.wait(60) == -9
    group.remove()
    assert not [path for path in group.directories if os.path.exists(path)]
    group.kill()
    group.remove()  # it is gone already
    assert group.count_tasks() == 0


def test_limit_that_cannot_be_set_is_an_error_and_none_is_not(tmp_path):
    hierarchy = {"pids": Hierarchy(2, str(tmp_path / "no/such"))}
    (tmp_path / "no").write_text("")
    with pytest.raises(InputError, match="cannot make the cgroup of alice: not a directory"):
        Group(hierarchy, "a").make(Limits(tasks_max=5), "alice")
    assert Group(hierarchy, "a").make(Limits(), "alice") == []


@pytest.mark.parametrize("handed_down", ["", "pids\n"])
def test_processes_go_beside_the_groups_below(tmp_path, handed_down):
    """A group of version 2 that has handed a controller down takes none itself."""
    for place in (tmp_path / "unit", tmp_path / "unit" / LEAF):
        place.mkdir()
        (place / "cgroup.procs").write_text("")
    (tmp_path / "unit/cgroup.subtree_control").write_text(handed_down)
    for descriptor in Group({"pids": Hierarchy(2, str(tmp_path))}, "unit").make(Limits(), "unit"):
        os.write(descriptor, b"0")
        os.close(descriptor)
    expected = tmp_path / "unit" / (LEAF if handed_down else "") / "cgroup.procs"
    assert expected.read_text() == "0"
