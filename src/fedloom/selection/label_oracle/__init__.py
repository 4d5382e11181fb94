"""The most balanced cohort label counts can give: an upper bound, not a method."""
