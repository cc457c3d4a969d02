# SPDX-License-Identifier: Apache-2.0
"""PID 1 of an enclave: boots it, supervises its units, reports how it ended."""
