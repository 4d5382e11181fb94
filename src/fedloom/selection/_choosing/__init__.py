"""Building blocks of selections: candidate draws, readings of reports, ranks, weighted draws, coverage."""
