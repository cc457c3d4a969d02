# SPDX-License-Identifier: Apache-2.0
"""Addresses, streams, configuration, errors and logs that all parts share."""
