"""What ends a comparison before it has a result."""


class WrongInput(Exception):
    """The command line, a file beside this one or the repository is not as needed; exit code 2."""
