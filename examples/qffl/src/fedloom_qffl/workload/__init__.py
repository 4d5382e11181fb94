"""Linear regression whose clients do not agree: some of them follow another law."""
