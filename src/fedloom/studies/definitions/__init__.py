"""The studies that come with fedloom, as TOML files."""
