# SPDX-License-Identifier: Apache-2.0
"""Unit files: text in, values out, their order and what they ask to be protected by."""
