"""A Flower app's own server half: `ServerApp.main(grid, context)`, run as it is."""
