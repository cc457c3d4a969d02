# SPDX-License-Identifier: Apache-2.0
"""The protocol: frames, credit, messages, handshake. Pure."""
