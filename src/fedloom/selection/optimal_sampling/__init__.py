"""Candidates are kept with probability proportional to their weighted update norm (Chen et al. 2020)."""
