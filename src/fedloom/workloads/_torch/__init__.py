"""Training with PyTorch, shared by workloads: settings, the local loop, tensors as arrays, reproducible scopes."""
