# SPDX-License-Identifier: Apache-2.0
"""For every test of the workspace: the order for two workers; Hypothesis judges what the code does, not how fast this
machine is today.

Its deadline and its too_slow check are timed assertions; on two shared cores they fail now and then for nothing.
"""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("workspace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("workspace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put groups first: each runs on one worker from start to end, and the last to start would keep all waiting."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
