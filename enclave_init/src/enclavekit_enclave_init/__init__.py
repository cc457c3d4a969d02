"""PID 1 of an enclave."""
