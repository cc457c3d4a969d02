# SPDX-License-Identifier: Apache-2.0
"""Nitro Enclaves for machines without Nitro: NSM, vsock and nitro-cli."""
