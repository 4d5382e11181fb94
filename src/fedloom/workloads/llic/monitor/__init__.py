"""A learned codec in detail: curves of other formats, photographs side by side, receptive fields, by a monitor."""
