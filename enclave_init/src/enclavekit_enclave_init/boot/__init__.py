# SPDX-License-Identifier: Apache-2.0
"""From the first instruction to the first unit."""
