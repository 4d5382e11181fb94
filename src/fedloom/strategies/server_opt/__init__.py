"""Server optimisers: FedAvgM, FedAdam, FedYogi and FedAdagrad (Hsu et al. 2019, Reddi et al. 2021)."""
