"""exec and cp into an enclave over an attested, encrypted channel."""
