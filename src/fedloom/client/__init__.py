"""The agent: the program that runs clients, on a worker or on a device."""
