"""Estimating a classifier's accuracy under shift without labels: MaNo, its rivals, and shifted sets."""
