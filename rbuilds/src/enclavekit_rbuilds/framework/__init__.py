# SPDX-License-Identifier: Apache-2.0
"""The framework: the root file system of ramdisk 0."""
