"""FlexLoRA: the mean of the clients' products, cut by SVD to each client's rank (Bai et al. 2024)."""
