# SPDX-License-Identifier: Apache-2.0
"""What brings an app's traffic to a listener: rules of the kernel, in a table or chains of our own."""
