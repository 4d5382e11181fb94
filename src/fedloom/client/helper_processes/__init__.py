"""Helper processes of workloads on a node: started, counted against a limit, ended with the run."""
