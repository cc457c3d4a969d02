# SPDX-License-Identifier: Apache-2.0
"""exec and cp into an enclave over an attested, encrypted channel."""
