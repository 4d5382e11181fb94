"""Measurements of a Flower app in a round, by the kind of exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedloom.core.records import Update
from fedloom.strategies.flower import records
from fedloom.strategies.flower.messages import ERROR, EVALUATE, KNOB, QUERY, TRAIN, Batch, category


@dataclass
class Measured:
    """Numbers of one round. An app's own aggregation and evaluation take precedence over the replies' means."""

    by_type: dict[str, dict[str, float]] = field(default_factory=dict)
    """Means over the replies of each message type."""
    aggregated: dict[str, dict[str, float]] = field(default_factory=dict)
    """What a strategy's `aggregate_train` and `aggregate_evaluate` returned, by category."""
    here: dict[str, float] = field(default_factory=dict)
    """What the app's own evaluation on the server returned."""
    errors: int = 0
    """Replies that were errors, and those that did not come where the app decides about them."""

    def replies(self, batch: Batch, updates: Sequence[tuple[int, Update]]) -> None:
        """Add the replies of one exchange."""
        rows: dict[str, list[dict[str, float]]] = {}
        for client, update in updates:
            reply = update.info.get(KNOB, {})
            if ERROR in reply:
                self.errors += 1
            elif client in batch.messages:
                kind = batch.messages[client].metadata.message_type
                rows.setdefault(kind, []).append(records.numbers(reply["content"]))
        for kind, found in rows.items():
            self.by_type.setdefault(kind, {}).update(_mean(found))

    def train(self) -> dict[str, float]:
        """Return the training metrics; those of a type such as `train.forward` have names such as `forward/loss`."""
        return self._of(TRAIN)

    def evaluation(self) -> dict[str, float] | None:
        """Return the evaluation metrics; where server and clients share a name, the clients' is `clients_NAME`."""
        clients = self._of(EVALUATE)
        found = {f"clients_{name}" if name in self.here else name: value for name, value in clients.items()} | self.here
        return found or None

    def queries(self) -> dict[str, float]:
        """Return the numbers of queries, such as `query/age`."""
        return {f"{QUERY}/{name}": value for name, value in self._of(QUERY).items()}

    def _of(self, wanted: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for kind, numbers in self.by_type.items():
            if category(kind) != wanted or (kind == wanted and wanted in self.aggregated):
                continue
            prefix = kind.partition(".")[2]
            found |= {f"{prefix}/{name}" if prefix else name: value for name, value in numbers.items()}
        return found | self.aggregated.get(wanted, {})


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each number that every reply has, weighted by the replies' examples where they have them."""
    key = next((name for name in records.WEIGHTS if all(name in row for row in rows)), None)
    weights = [row[key] if key else 1.0 for row in rows]
    total = sum(weights)
    if not rows or total <= 0:
        return {}
    shared = set.intersection(*(set(row) for row in rows)) - {key}
    return {
        name: sum(weight * row[name] for weight, row in zip(weights, rows, strict=True)) / total
        for name in sorted(shared)
    }
