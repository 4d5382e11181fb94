"""What every package agrees on: records, seeds, configuration, interfaces, errors. Imports no other package."""
