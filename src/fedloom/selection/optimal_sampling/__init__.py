"""Candidates are chosen with probability proportional to their weighted update norm (Chen et al. 2020)."""
