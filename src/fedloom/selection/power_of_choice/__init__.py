"""Of d candidates drawn by data size, the m with the largest loss (Cho et al. 2020)."""
