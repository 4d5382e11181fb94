"""Clients whose losses correlate most with those of all clients (Tang et al. 2022)."""
