"""Candidates whose updates best represent all candidates' (Balakrishnan et al. 2022)."""
