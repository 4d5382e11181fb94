"""FFA-LoRA: the factors A stay at their shared first values, only B is trained and averaged (Sun et al. 2024)."""
