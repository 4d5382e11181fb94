"""What every room agrees on: records, seeds, configuration, interfaces, errors. Imports nobody."""
