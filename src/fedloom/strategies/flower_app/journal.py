"""The journal for a resumed `main`: the replies it had received, and the position of its `Strategy.start`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedloom.core.records import Array, Arrays, Info, Update
from fedloom.strategies.flower.messages import KNOB

REPLIES = "replies"
START = "start"


@dataclass(frozen=True, slots=True)
class Entry:
    """One item `main` received: a tree of JSON, and the arrays it refers to. Never changed once made."""

    tree: Info
    arrays: Arrays = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`replies` or `start`."""
        return str(self.tree["kind"])


def replies_entry(updates: Sequence[tuple[int, Update]]) -> Entry:
    """Return the entry of one exchange's updates."""
    arrays: dict[str, Array] = {}
    heads = []
    for index, (client, update) in enumerate(updates):
        names = {}
        for group, named in update.groups.items():
            names[group] = list(named)
            arrays |= {f"{index}/{group}/{name}": array for name, array in named.items()}
        heads.append({"client": client, "groups": names, "reply": update.info[KNOB]})
    return Entry({"kind": REPLIES, "updates": heads}, arrays)


def entry_updates(entry: Entry) -> list[tuple[int, Update]]:
    """Return the updates of an entry; enough of each to make its reply."""
    return [
        (
            head["client"],
            Update(
                num_examples=0,
                groups={
                    group: {name: entry.arrays[f"{index}/{group}/{name}"] for name in names}
                    for group, names in head["groups"].items()
                },
                info={KNOB: head["reply"]},
            ),
        )
        for index, head in enumerate(entry.tree["updates"])
    ]


def flatten(journal: Sequence[Entry]) -> tuple[Arrays, tuple[Info, ...]]:
    """Return a journal as the fields of a state."""
    arrays = {f"{place}:{name}": array for place, entry in enumerate(journal) for name, array in entry.arrays.items()}
    return arrays, tuple(entry.tree for entry in journal)


def unflatten(arrays: Arrays, trees: Sequence[Info]) -> list[Entry]:
    """Return the journal of a state's fields (inverse of `flatten`)."""
    parts: list[dict[str, Array]] = [{} for _ in trees]
    for name, array in arrays.items():
        place, _, rest = name.partition(":")
        parts[int(place)][rest] = array
    return [Entry(tree, part) for tree, part in zip(trees, parts, strict=True)]
