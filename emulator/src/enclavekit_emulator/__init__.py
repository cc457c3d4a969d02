"""Nitro Enclaves for machines without Nitro: NSM, vsock and nitro-cli."""
