# SPDX-License-Identifier: Apache-2.0
"""The fuzzer on seeds that never change, so that a failure comes again; more of them in the long run."""

import pytest

from .channel_fuzzer import run_one


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_frames_that_are_nearly_right(first):
    for seed in range(first, first + 100):
        run_one(seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1_000, 101_000, 10_000))
def test_many_frames_that_are_nearly_right(first):
    for seed in range(first, first + 10_000):
        run_one(seed)
