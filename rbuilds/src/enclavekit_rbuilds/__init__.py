"""Reproducible enclave images from a Dockerfile, an archive or a directory."""
