"""The most balanced cohort label counts can give: a reference, not a method."""
