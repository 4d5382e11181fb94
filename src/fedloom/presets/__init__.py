"""Experiments that work as they are: one TOML file each, whose first line says what it shows."""
