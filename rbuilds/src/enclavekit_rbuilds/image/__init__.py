# SPDX-License-Identifier: Apache-2.0
"""The image: ramdisks and EIF from what the other parts made."""
