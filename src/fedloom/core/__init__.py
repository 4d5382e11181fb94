"""Shared foundations: records, seeds, configuration, interfaces, errors. Imports no other package."""
