"""Accelerated MRI reconstruction, and removing what a model has learned of one anatomy."""
