# SPDX-License-Identifier: Apache-2.0
import os
import platform

import pytest
from enclavekit_enclave_init.boot import kernel_features
from enclavekit_enclave_init.boot.kernel_features import FEATURES, Feature, describe_missing


def test_what_is_missing_is_named_with_its_cost():
    features = (Feature("a", lambda: True, "x"), Feature("b", lambda: False, "nothing works"))
    assert describe_missing(features) == ["this kernel has no b: nothing works"]


def test_probes_see_this_kernel():
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    found = {feature.name: feature.is_there() for feature in FEATURES}
    assert found["openat2 (Linux 5.6)"] == (release >= (5, 6))
    assert found["inotify"] == os.path.exists("/proc/sys/fs/inotify")
    assert found["/dev/nsm"] == os.path.exists("/dev/nsm")


def test_a_kernel_without_the_call_is_told_apart(monkeypatch):
    """Number 400 to 423 are reserved on every architecture, so a kernel answers as an old one does to openat2."""
    monkeypatch.setattr(kernel_features, "SYS_OPENAT2", 402)
    assert not kernel_features._has_openat2()


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_every_cost_is_said_in_a_line(feature):
    assert feature.cost and "\n" not in feature.cost and not feature.cost.endswith(".")
