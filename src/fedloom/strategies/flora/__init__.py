"""FLoRA: clients' adapters are stacked, merged into the base and started anew (Wang et al. 2024)."""
