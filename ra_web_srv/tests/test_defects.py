# SPDX-License-Identifier: Apache-2.0
"""The table of known mistakes names tests that exist, for each of them."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ROW = re.compile(r"\| ([WU][0-9]+) \| [^|]+ \| ((?:`[^`]+` ?)+)\|")
ROWS = {found[1]: re.findall(r"`([^`]+)`", found[2]) for found in ROW.finditer((HERE / "defects.md").read_text())}


def test_no_mistake_is_left_out():
    assert list(ROWS) == [f"W{number}" for number in range(1, 29)] + [f"U{number}" for number in range(1, 5)]


@pytest.mark.parametrize("name", sorted({name for names in ROWS.values() for name in names}))
def test_named_test_exists(name):
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert any(one.startswith("test_") for one in found) if not function else function in found
