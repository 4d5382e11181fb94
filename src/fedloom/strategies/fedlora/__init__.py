"""Federated LoRA with one fixed rank: the mean of the clients' factors (FedIT, Zhang et al. 2024)."""
