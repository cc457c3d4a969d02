"""Hashes every file that enters the enclave into NATS KV."""
