"""A data holder's right to withdraw: runs that continue without a client, and with its contribution undone."""
