"""Adversarial training of image classifiers (PGD-AT, TRADES, MART, AWP), for the median ensemble and others (torch)."""
