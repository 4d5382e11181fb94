"""Federated averaging: the weighted mean of the clients' models (McMahan et al. 2017)."""
