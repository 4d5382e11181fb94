"""Client selections, one folder each: choose the clients of a round."""
