"""Checks that a model's dtypes do not change between rounds."""

from __future__ import annotations

from fedloom.core.errors import RunFailed
from fedloom.core.records import MODEL, DType, Exchange


class ModelDtypes:
    """Compares the global model of each exchange with those before it."""

    def __init__(self) -> None:
        self._known: dict[str, DType] = {}

    def check(self, round: int, exchange: Exchange) -> None:
        """Refuse a model one of whose arrays has another dtype than in an earlier exchange of the session.

        Args:
            round: for the message.
            exchange: about to start; its input `model`, if it has one, contains the model in the group `model`.

        Raises:
            RunFailed: an array's dtype has changed; the message names the array and both dtypes.
        """
        model = exchange.inputs.get(MODEL)
        for name, array in model.groups.get(MODEL, {}).items() if model is not None else ():
            before = self._known.setdefault(name, array.dtype)
            if before != array.dtype:
                raise RunFailed(
                    f"round {round}: array {name!r} of the global model is {array.dtype}, but was {before} before. The "
                    f"strategy has changed it: have `finish` return array.astype(np.{before.name}), which restores the "
                    "dtype of the workload's model"
                )
