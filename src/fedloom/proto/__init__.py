"""Wire messages: generated code, fenced, and the codec that alone touches it."""
