# SPDX-License-Identifier: Apache-2.0
"""For every test of the workspace: the order for several workers; what pages of defects promise; Hypothesis judges what
the code does, not how fast this machine is today.

Its deadline and its too_slow check are timed assertions; on two shared cores they fail now and then for nothing.
"""

import ast
import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("workspace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("workspace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put groups first: each runs on one worker from start to end, and the last to start would keep all waiting."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


ROOT = Path(__file__).resolve().parent
NAMED_TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")


@functools.cache
def _functions_of(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.fixture(scope="session")
def check_defects_page() -> Callable[[Path, int, Path], None]:
    """`check(page, count, tests)`: a page has rows 1 to `count`, and the last cell of each names tests that exist, as
    `FILE::NAME` below `tests` or, with a slash, below the checkout.
    """

    def check(page: Path, count: int, tests: Path) -> None:
        rows = [line.split("|")[1:-1] for line in page.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
        assert [int(row[0]) for row in rows] == list(range(1, count + 1))
        for row in rows:
            named = NAMED_TEST.findall(row[-1])
            assert named, f"defect {row[0]}: no test"
            for path, name in named:
                file = ROOT / path if "/" in path else tests / path
                assert name in _functions_of(file), f"defect {row[0]}: there is no {path}::{name}"
                assert name.startswith("test_")

    return check
