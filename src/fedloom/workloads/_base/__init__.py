"""The base class of workloads with a PyTorch model: rows of examples, a partition, local training and evaluation."""
