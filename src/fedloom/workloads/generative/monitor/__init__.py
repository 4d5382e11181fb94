"""Distances between samples and clients' images, exact from sums that add up: no image leaves a client."""
