"""Clients with more examples are asked more often."""
