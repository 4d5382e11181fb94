"""Candidates clustered by what their output layer learned (after Chen and Vikalo 2024)."""
