"""A Flower app: a small network on digits."""
