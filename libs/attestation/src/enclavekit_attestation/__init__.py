"""Attestation documents: parse, verify, policy."""
