# SPDX-License-Identifier: Apache-2.0
"""What every part uses: programs, cache, progress."""
