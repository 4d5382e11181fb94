"""Causal language modelling: any local transformers checkpoint on local texts, whole or with adapters."""
