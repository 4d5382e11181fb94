"""Utility from loss, age and speed, with exploration (Lai et al. 2021)."""
