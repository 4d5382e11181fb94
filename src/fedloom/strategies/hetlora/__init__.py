"""HetLoRA: clients of different ranks that prune themselves, weighted by what they learned (Cho et al. 2024)."""
