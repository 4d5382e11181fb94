"""Candidates whose updates best stand for all candidates' (Balakrishnan et al. 2022)."""
