"""Compares the bits of every preset's results here with those of an earlier commit: `make same-bits`."""
