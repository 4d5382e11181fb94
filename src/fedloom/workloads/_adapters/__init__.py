"""Low-rank adapters on PyTorch models: layers, and the federation's record on a model."""
