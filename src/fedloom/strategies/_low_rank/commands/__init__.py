"""Commands of the low-rank strategies; see `core.contributed`."""
