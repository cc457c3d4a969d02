# SPDX-License-Identifier: Apache-2.0
"""The kernel: where it comes from and whether an enclave can live with it."""
