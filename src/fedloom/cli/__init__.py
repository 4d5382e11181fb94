"""The command line: parses, builds an experiment, calls. Nothing heavy is imported before a command needs it."""

from fedloom.cli.app import main

__all__ = ["main"]
