"""The proximal term, which several strategies add to the local loss."""
