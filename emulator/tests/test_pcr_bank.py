# SPDX-License-Identifier: Apache-2.0
"""The registers against a second, plainer statement of their rules."""

import hashlib

import pytest
from enclavekit_emulator.pcr_bank import PcrBank, PcrError
from enclavekit_nsm.messages import ErrorCode
from hypothesis import given
from hypothesis import strategies as st

INDEX = st.integers(0, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), INDEX, st.binary(max_size=100)),
        st.tuples(st.just("lock"), INDEX),
        st.tuples(st.just("lock_range"), INDEX),
    ),
    max_size=30,
)


def expected(step, values, locked):
    """Apply one step to dict and set; return its result or the error's name."""
    match step:
        case ("lock_range", count):
            if count > 32:
                return "InvalidIndex"
            locked.update(range(count))
            return None
        case (_, index, *_) if index > 31:
            return "InvalidIndex"
        case (_, index, *_) if index in locked:
            return "ReadOnlyIndex"
        case ("lock", index):
            locked.add(index)
            return None
        case ("extend", index, data):
            values[index] = hashlib.sha384(values.get(index, bytes(48)) + data).digest()
            return values[index]


@given(STEPS)
def test_bank_follows_the_rules(steps):
    bank, values, locked = PcrBank(), {}, set(range(16))
    for name, *arguments in steps:
        try:
            result = getattr(bank, name)(*arguments)
        except PcrError as exc:
            result = exc.code.value
        assert result == expected((name, *arguments), values, locked)
    for index in range(32):
        assert bank.describe(index) == (index in locked, values.get(index, bytes(48)))
    assert bank.locked_values() == {index: values.get(index, bytes(48)) for index in sorted(locked)}
    assert list(bank.locked_values()) == sorted(locked)


@pytest.mark.parametrize("index", [-1, 32, 65535])
def test_bank_has_no_other_registers(index):
    for call in (PcrBank().describe, PcrBank().lock, lambda number: PcrBank().extend(number, b"")):
        with pytest.raises(PcrError) as caught:
            call(index)
        assert caught.value.code is ErrorCode.INVALID_INDEX


def test_range_of_none_locks_nothing_and_of_all_everything():
    bank = PcrBank()
    bank.lock_range(0)
    assert len(bank.locked_values()) == 16
    bank.lock_range(32)
    assert len(bank.locked_values()) == 32


@pytest.mark.parametrize("initial", [{32: bytes(48)}, {-1: bytes(48)}, {0: bytes(32)}])
def test_bank_refuses_to_boot_with_other_shapes(initial):
    with pytest.raises(ValueError, match="PCR"):
        PcrBank(initial)
