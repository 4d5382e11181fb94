"""FLASC: dense local training of adapters that travel sparse, the largest entries only (Kuo et al. 2024)."""
