"""Flower's strategies, unchanged: Krum, Bulyan, FedMedian, FedAdam, differential privacy, or a class of your own."""
