# SPDX-License-Identifier: Apache-2.0
"""UDP over vsock: a session is a connection like any other, with a connected datagram socket at one of its ends."""
