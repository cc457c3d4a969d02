# SPDX-License-Identifier: Apache-2.0
"""What is decided about units while the enclave lives: events in, actions out. Pure."""
