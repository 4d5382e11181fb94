"""Spiking federated learning whose clients are chosen by credit (SFedCA; a reconstruction from the abstract)."""
