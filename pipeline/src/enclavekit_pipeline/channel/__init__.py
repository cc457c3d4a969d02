# SPDX-License-Identifier: Apache-2.0
"""A connection and its streams, the same on both ends."""
