"""Where a text classifier's explanations put their weight, on sentence pairs with known relevant words (GECO)."""
