"""Class gains remembered from earlier rounds or previewed by a forward pass, jointly balanced; no extra training."""
