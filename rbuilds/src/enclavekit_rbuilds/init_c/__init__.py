# SPDX-License-Identifier: Apache-2.0
"""A small static init in C, for images that run one program and want no Python."""
