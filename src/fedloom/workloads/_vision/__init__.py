"""Networks for images, shared by workloads: their settings, and functions from the data's shape to a module."""
