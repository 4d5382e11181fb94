"""Studies: a grid of experiments over scenarios, arms and seeds, run resumably and judged with paired statistics."""
