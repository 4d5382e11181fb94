"""q-FedAvg: clients with a larger loss weigh more, so that the model serves all of them more evenly."""
