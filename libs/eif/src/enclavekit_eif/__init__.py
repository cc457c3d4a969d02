"""Enclave Image Format: read, write, measure, extract; deterministic cpio."""
