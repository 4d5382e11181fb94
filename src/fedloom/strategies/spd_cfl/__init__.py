"""SPD-CFL, after its abstract alone: the rank drops by steps while a target is met and training is consistent."""
