"""Twenty image corruptions, in five severities and two banks, from NumPy and SciPy alone."""
