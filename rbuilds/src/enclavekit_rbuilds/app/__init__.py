# SPDX-License-Identifier: Apache-2.0
"""The app: its files and how it is run, from whichever source it comes."""
