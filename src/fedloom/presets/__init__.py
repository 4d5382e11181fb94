"""Experiments independent of a method: one TOML file each, described in its first line."""
