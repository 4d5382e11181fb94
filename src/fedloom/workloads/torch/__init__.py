"""Any PyTorch model on any rows: files that the settings name, or objects that a Python program passes to its run."""
