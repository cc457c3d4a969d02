# SPDX-License-Identifier: Apache-2.0
"""Enclave Image Format: read, write, measure, extract; deterministic cpio."""
