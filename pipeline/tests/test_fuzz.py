# SPDX-License-Identifier: Apache-2.0
"""The fuzzers on seeds that never change, so that a failure comes again; more of them in the long run."""

import pytest

from . import channel_fuzzer, copy_fuzzer, legacy_fuzzer

FUZZERS = {"channel": channel_fuzzer.run_one, "copies": copy_fuzzer.run_one, "old protocol": legacy_fuzzer.run_one}


@pytest.mark.parametrize("first", range(0, 400, 100))
@pytest.mark.parametrize("fuzzer", FUZZERS)
def test_what_is_nearly_right(fuzzer, first):
    for seed in range(first, first + 100):
        FUZZERS[fuzzer](seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1_000, 101_000, 10_000))
@pytest.mark.parametrize("fuzzer", FUZZERS)
def test_much_that_is_nearly_right(fuzzer, first):
    for seed in range(first, first + 10_000):
        FUZZERS[fuzzer](seed)
