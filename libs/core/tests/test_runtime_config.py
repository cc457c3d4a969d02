# SPDX-License-Identifier: Apache-2.0
import hashlib
import json

import msgspec
import pytest
from enclavekit_core.errors import ConfigError
from enclavekit_core.runtime_config import (
    Schema,
    check_schema,
    encode_environment,
    encode_values,
    expected_pcr16,
    pcr_data,
    resolve_values,
)
from hypothesis import given
from hypothesis import strategies as st


def schema_of(**settings):
    schema = msgspec.convert(settings, Schema)
    check_schema(schema, "test")
    return schema


SCHEMA = schema_of(
    LEVEL={"type": "string", "enum": ["debug", "info"], "default": "info"},
    HOST={"type": "string", "pattern": "[a-z.]+"},
    WORKERS={"type": "integer", "minimum": 1, "maximum": 64, "default": 4},
    FAST={"type": "boolean", "default": False},
)


def test_values_defaults_and_their_forms():
    values = resolve_values(SCHEMA, {"HOST": "a.b", "FAST": True}, "test")
    assert encode_values(values) == b'{"FAST":true,"HOST":"a.b","LEVEL":"info","WORKERS":4}'
    assert encode_environment(values) == b"FAST=true\nHOST=a.b\nLEVEL=info\nWORKERS=4\n"
    assert pcr_data(values) == hashlib.sha384(encode_values(values)).digest()
    assert expected_pcr16(values) == hashlib.sha384(bytes(48) + pcr_data(values)).digest()


@pytest.mark.parametrize(
    ("given_values", "where"),
    [
        ({}, "HOST"),
        ([], ""),
        (None, ""),
        ({"HOST": "a", "NOPE": 1}, "NOPE"),
        ({"HOST": 1}, "HOST"),
        ({"HOST": None}, "HOST"),
        ({"HOST": "A"}, "HOST"),
        ({"HOST": "a\nB=1"}, "HOST"),
        ({"HOST": "a" * 4097}, "HOST"),
        ({"HOST": "a", "WORKERS": 0}, "WORKERS"),
        ({"HOST": "a", "WORKERS": 65}, "WORKERS"),
        ({"HOST": "a", "WORKERS": True}, "WORKERS"),
        ({"HOST": "a", "WORKERS": 2.0}, "WORKERS"),
        ({"HOST": "a", "FAST": 1}, "FAST"),
        ({"HOST": "a", "LEVEL": "trace"}, "LEVEL"),
    ],
)
def test_what_the_parent_may_not_choose(given_values, where):
    with pytest.raises(ConfigError) as caught:
        resolve_values(SCHEMA, given_values, "test")
    assert caught.value.key == where


@pytest.mark.parametrize(
    "setting",
    [
        {"type": "string", "minimum": 1},
        {"type": "integer", "pattern": "1"},
        {"type": "string", "pattern": "("},
        {"type": "integer", "default": "1"},
        {"type": "integer", "maximum": 3, "default": 4},
        {"type": "string", "enum": ["a"], "default": "b"},
        {"type": "boolean", "enum": [1]},
    ],
)
def test_a_schema_that_contradicts_itself(setting):
    with pytest.raises(ConfigError):
        schema_of(A=setting)


@pytest.mark.parametrize("name", ["", "A B", "1A", "A=B", "Ä", "A" * 129])
def test_names_are_those_of_environment_variables(name):
    with pytest.raises(ConfigError):
        schema_of(**{name: {"type": "string"}})


@given(st.dictionaries(st.sampled_from(["HOST", "LEVEL", "WORKERS", "FAST", "X"]), st.one_of(
    st.text(), st.integers(), st.booleans(), st.none(), st.floats(), st.lists(st.integers()))))  # fmt: skip
def test_whatever_is_accepted_has_one_line_a_name_and_reads_back(choice):
    try:
        values = resolve_values(SCHEMA, choice, "test")
    except ConfigError:
        return
    assert json.loads(encode_values(values)) == values
    assert [line.partition("=")[0] for line in encode_environment(values).decode().splitlines()] == sorted(SCHEMA)
