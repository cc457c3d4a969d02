# SPDX-License-Identifier: Apache-2.0
"""Hashes every file that enters the enclave into NATS KV."""
