"""Learned image compression with large-kernel transforms that adapt to each image."""
