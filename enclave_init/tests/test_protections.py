# SPDX-License-Identifier: Apache-2.0
import pytest
from enclavekit_core.cgroups import Hierarchy, parse_hierarchies
from enclavekit_enclave_init.runtime.notifications import MAX_DATAGRAM_BYTES, parse_notification
from enclavekit_enclave_init.units.place_keys import PROTECTIONS
from enclavekit_enclave_init.units.protections import ASKED, Abilities, settle_protections
from enclavekit_enclave_init.units.unit import parse_unit
from hypothesis import given
from hypothesis import strategies as st

FULL = Abilities(frozenset({"memory", "cpu", "pids"}), True, True, True, True)
VALUES = {
    "MemoryMax": "1", "CPUQuota": "'50%'", "TasksMax": "5", "LandlockRead": "['/']", "LandlockWrite": "[]",
    "SeccompProfile": "'default'", "PrivateNetwork": "true", "PrivateTmp": "true",
}  # fmt: skip


def test_every_protection_that_may_lack_is_looked_at():
    assert set(ASKED) == set(PROTECTIONS)


@pytest.mark.parametrize("key", VALUES)
def test_unit_does_not_start_without_what_it_asks_for_unless_it_says_insecure(key):
    text = f"ExecStart = 'a'\n{key} = {VALUES[key]}\n"
    strict = parse_unit("a", text, "f")
    assert settle_protections(strict, FULL) == (strict, [], "")
    assert key in settle_protections(strict, Abilities())[2]
    lenient = parse_unit("a", text + f"InsecureMayLack = ['{key}']", "f")
    bare, lacks, refusal = settle_protections(lenient, Abilities())
    assert not refusal
    assert len(lacks) == 1 and lacks[0].startswith(key) and "insecure" in lacks[0]
    attribute, absent = ASKED[key]
    assert getattr(bare, attribute) == absent
    assert settle_protections(lenient, FULL)[0] == lenient


def test_what_may_lack_is_kept_where_it_can_be():
    text = "ExecStart = 'a'\nMemoryMax = 1\nTasksMax = 2\nInsecureMayLack = ['MemoryMax', 'TasksMax']"
    bare, lacks, _ = settle_protections(parse_unit("a", text, "f"), Abilities(frozenset({"memory"})))
    assert (bare.memory_max, bare.tasks_max, len(lacks)) == (1, 0, 1)


MOUNTS = """\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/unified rw,relatime shared:5 - cgroup2 cgroup2 rw,nsdelegate
"""


def test_controllers_are_taken_where_they_are():
    own = "4:memory:/a/b\n2:cpu,cpuacct:/\n0::/c\n"
    found = parse_hierarchies(MOUNTS, own, {"/sys/fs/cgroup/unified": "pids io"})
    assert found == {
        "cpu": Hierarchy(1, "/sys/fs/cgroup/cpu"),
        "memory": Hierarchy(1, "/sys/fs/cgroup/memory/a/b"),
        "pids": Hierarchy(2, "/sys/fs/cgroup/unified/c"),
        "": Hierarchy(2, "/sys/fs/cgroup/unified/c"),
    }


def test_group_outside_of_what_is_mounted_is_not_climbed_to():
    found = parse_hierarchies("1 2 0:1 / /cg rw - cgroup2 c rw\n", "0::/../../x\n", {"/cg": "memory"})
    assert found["memory"] == Hierarchy(2, "/cg")


@pytest.mark.parametrize("text", ["", "25 20\n", "a b c d e - cgroup\n"])
def test_no_cgroups_is_no_error(text):
    assert parse_hierarchies(text, "", {}) == {}


def test_notification_table():
    assert parse_notification(b"READY=1\nSTATUS=a=b\x1b[1m\nnonsense\n=x\n") == {"READY": "1", "STATUS": "a=b?[1m"}


@given(st.binary(max_size=MAX_DATAGRAM_BYTES + 10))
def test_any_notification_is_taken(data):
    assert all(value.isprintable() for value in parse_notification(data).values())
