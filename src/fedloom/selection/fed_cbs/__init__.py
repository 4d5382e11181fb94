"""Cohorts whose pooled classes are balanced, from label counts (Zhang et al. 2023)."""
