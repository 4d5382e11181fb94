"""Model-parallel Gaussian splatting: a scene of splats cut into boxes, rendered exactly, trained as one model."""
