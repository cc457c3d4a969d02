"""Remote attestation web server."""
