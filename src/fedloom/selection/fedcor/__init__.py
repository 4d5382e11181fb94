"""Clients whose losses move together with everybody's (Tang et al. 2022)."""
