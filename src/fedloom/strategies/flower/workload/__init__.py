"""Clients that run a Flower app: any `ClientApp` of the message API, mods included."""
