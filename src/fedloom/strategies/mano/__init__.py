"""One model trained, then scored without labels on many shifted sets (MaNo and its rivals)."""
