# SPDX-License-Identifier: Apache-2.0
"""The caller's side: whom to trust, who we are, and each verb as the host does it."""
