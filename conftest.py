# SPDX-License-Identifier: Apache-2.0
"""For every test of the workspace: Hypothesis judges what the code does, not how fast this machine is today.

Its deadline and its too_slow check are timed assertions; on two shared cores they fail now and then for nothing.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("workspace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("workspace")
