"""Nitro Secure Module: CBOR messages and device client."""
