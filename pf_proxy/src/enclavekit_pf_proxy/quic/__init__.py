# SPDX-License-Identifier: Apache-2.0
"""The ClientHellos that a UDP session's QUIC packets carry, as its server will read them. Pure."""
