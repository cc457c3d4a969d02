# SPDX-License-Identifier: Apache-2.0
"""What carries decisions out: processes, signals, timers, cgroups, mounts."""
