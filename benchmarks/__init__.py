"""Speed and memory: fedloom beside the bare floor and beside Flower's own engine, on the same work."""
