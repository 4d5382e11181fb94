"""Persistence of runs: run folders, checkpoints, accepted results, pinned records."""
