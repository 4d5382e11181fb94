"""Experiments of no particular method: one TOML file each, whose first line says what it shows."""
