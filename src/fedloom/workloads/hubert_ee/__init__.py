"""Speech recognition with early exits: a HuBERT encoder that stops at a confident branch (torch, transformers)."""
