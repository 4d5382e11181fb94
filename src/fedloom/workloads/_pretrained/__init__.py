"""Pretrained transformers on this machine: finding their folders, naming them by digest."""
