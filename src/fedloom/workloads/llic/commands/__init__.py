"""Commands of learned image compression; see `core.contributed`."""
