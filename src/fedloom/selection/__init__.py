"""Client selections, one folder each: who is asked in a round."""
