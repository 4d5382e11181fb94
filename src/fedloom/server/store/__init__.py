"""What a run keeps: run folders, checkpoints, accepted results, pinned records."""
