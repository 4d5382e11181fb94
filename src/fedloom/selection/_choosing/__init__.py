"""What several selections are made of: candidate draws, readings of reports, ranks, weighted draws, coverage."""
