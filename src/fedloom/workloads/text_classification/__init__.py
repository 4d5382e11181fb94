"""Text classification: a small pretrained transformer, frozen under a new head or fine-tuned (transformers, torch)."""
