"""Twenty ways to spoil an image, in five severities and two banks, from NumPy and SciPy alone."""
