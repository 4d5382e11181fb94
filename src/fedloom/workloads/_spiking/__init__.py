"""Spiking networks: neurons, encoders, layers, losses, energy, and whole groups of clients as one program (torch)."""
