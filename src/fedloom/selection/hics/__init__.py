"""Clients clustered by what their output layer learned, balanced ones preferred at first (Chen and Vikalo 2024)."""
