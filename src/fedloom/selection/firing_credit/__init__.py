"""Candidates credited by how training changes their firing rates: SFedCA's selection (a reconstruction)."""
