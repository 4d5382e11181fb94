"""Rounds that make a global model forget a client; `fedloom forget` uses them."""
