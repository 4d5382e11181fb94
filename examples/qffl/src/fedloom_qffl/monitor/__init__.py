"""How evenly the global model serves all clients: the losses of every one, not of the round's cohort alone."""
