"""FLoRA: clients' adapters are stacked, merged into the base and reinitialised (Wang et al. 2024)."""
