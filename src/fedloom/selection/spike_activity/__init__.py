"""Candidates whose spike activity best covers all candidates'."""
