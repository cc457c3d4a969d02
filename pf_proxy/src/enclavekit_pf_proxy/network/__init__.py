# SPDX-License-Identifier: Apache-2.0
"""Addresses and routes, without programs of others: an enclave has no iproute2."""
