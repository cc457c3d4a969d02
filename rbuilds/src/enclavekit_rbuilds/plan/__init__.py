# SPDX-License-Identifier: Apache-2.0
"""A build as a list of steps, and what runs them."""
