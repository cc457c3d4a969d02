# SPDX-License-Identifier: Apache-2.0
"""What proves an image: measurements, bill of materials, provenance, and that a second build gives the same bytes."""

DEFAULT_BUILDER = "urn:enclavekit:rbuilds:local"
"""Who builds where nobody says who: the word of a builder without a name is worth nothing to others."""
