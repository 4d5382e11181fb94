"""Of d uniform candidates, the m with the largest loss of the global model."""
