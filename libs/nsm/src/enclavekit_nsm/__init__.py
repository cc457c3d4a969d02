# SPDX-License-Identifier: Apache-2.0
"""Nitro Secure Module: CBOR messages and device client."""
