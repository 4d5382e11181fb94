"""Of d uniform candidates, the m whose local training moved the model farthest."""
