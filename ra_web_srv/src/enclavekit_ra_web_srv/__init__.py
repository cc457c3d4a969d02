# SPDX-License-Identifier: Apache-2.0
"""Remote attestation web server."""
