"""The error catalogue: complete, documented, and fit for the wire and the shell."""

import re

import grpc
import pytest

from fedloom.core import errors

DOCUMENTED_EXIT_CODES = {0, 1, 2, 130}


@pytest.mark.parametrize("kind", errors.catalogue())
def test_every_class_has_a_status_an_exit_code_and_a_docstring(kind: type[errors.FedloomError]) -> None:
    assert kind.status in grpc.StatusCode.__members__ and kind.status != "OK"
    assert kind.exit_code in DOCUMENTED_EXIT_CODES - {0}
    assert kind.__doc__ and kind.__doc__.strip().endswith(".")
    assert kind("what happened").public_message() == ("what happened" if kind.public is None else kind.public)


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    tree = (errors.__doc__ or "").split("\n\n")[1]
    drawn: dict[str, tuple[str | None, str]] = {}
    path: list[tuple[int, str]] = []
    for line in tree.splitlines():
        found = re.match(r"^(\W*)(\w+)(.*)$", line)
        assert found, line
        depth, name, rest = len(found[1]), found[2], found[3]
        path = [(d, n) for d, n in path if d < depth]
        drawn[name] = (path[-1][1] if path else None, rest)
        path.append((depth, name))
    real = {
        kind.__name__: kind.__base__.__name__ if kind.__base__ is not Exception else None  # type: ignore[union-attr]
        for kind in errors.catalogue()
    }
    assert {name: parent for name, (parent, _) in drawn.items()} == real
    for name, (_, rest) in drawn.items():
        if "exit" in rest:
            assert getattr(errors, name).exit_code == int(rest.split("exit")[1])


def test_a_more_specific_error_of_a_plug_in_is_not_of_the_catalogue() -> None:
    class Own(errors.UsageError):
        """One of a method's."""

    assert Own in errors.UsageError.__subclasses__() and Own not in errors.catalogue()


def test_internal_errors_do_not_leave_the_machine() -> None:
    assert "secret" not in errors.FedloomError("secret path").public_message()
    assert errors.ConfigError("rounds: got 0").public_message() == "rounds: got 0"
