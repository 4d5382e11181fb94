"""Explanation bias: how much of an explanation falls on the relevant words, from histograms that clients add up."""
