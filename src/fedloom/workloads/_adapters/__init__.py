"""Low-rank adapters on PyTorch models: layers, the federation's record on a model, PEFT's files."""
