"""Federated AdaLoRA: gates between the factors, a falling total rank shared out by gradient-based importance."""
