# SPDX-License-Identifier: Apache-2.0
"""Reproducible enclave images from a Dockerfile, an archive or a directory."""
