# SPDX-License-Identifier: Apache-2.0
"""What stands before the bytes of a connection: destination headers, the versioned header, PROXY protocol. Pure."""
