"""TCP over vsock in both directions."""
