"""The reference documentation, rendered from the code itself: settings, commands, errors, records."""
