"""Active federated learning: clients valued by their last loss (Goetz et al. 2019)."""
