"""SA-FedLoRA: regularised whole-model rounds, then LoRA with an annealed rank (Yang et al., arXiv 2405.09394 v1)."""
