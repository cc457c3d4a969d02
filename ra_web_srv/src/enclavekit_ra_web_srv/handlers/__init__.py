# SPDX-License-Identifier: Apache-2.0
"""The routes: a handler takes a checked request, asks its collaborators, and returns a typed answer; none blocks."""
