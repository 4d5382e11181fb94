"""HetLoRA: clients of different ranks that prune themselves, weighed by what they learned (Cho et al. 2024)."""
