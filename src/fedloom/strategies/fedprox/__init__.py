"""FedProx: federated averaging with a proximal term in the clients' loss (Li et al. 2020)."""
