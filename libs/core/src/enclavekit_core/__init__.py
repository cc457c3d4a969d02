"""Addresses, streams, configuration, errors and logs that all parts share."""
