"""Label-free accuracy: the norm of normalised logits, from sums that clients add up (MaNo)."""
