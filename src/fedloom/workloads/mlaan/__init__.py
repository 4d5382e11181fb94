"""Local learning of a residual network, module by module: DGL, InfoPro, AugLocal, and MLAAN on top (torch)."""
