"""The part of the page on trust that lists what leaves a node."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from fedloom.cli.reference.markdown import code, table
from fedloom.client.disclosure import FEW, MAX_CLASSES, MAX_NAME, withheld_facts
from fedloom.client.facts import WORDS
from fedloom.core.protocols import WorkloadInfo
from fedloom.proto.v1.leaving import calls, sent_fields

_OF_DATA: Mapping[str, str] = {
    "data": "facts: `name`, `kind`, `licence`, digest of the files (`sha256`), numbers of examples (`num_train`, "
    "`num_test`) and classes (`num_labels`), `shape`, `mean` and `std`, names and types of a table's `columns`, of a "
    "site also `sums` (for each channel or column the number of values, their sum and that of their squares), of "
    "pictures `values` (how many files have which kind of numbers) and `range` (the smallest and the largest), what "
    "else the workload's code states (of speech speakers and seconds), and `schema` (a digest of classes, shape and "
    "moments). With `withhold.statistics` or `withhold.digests` without these; where any part is withheld only facts "
    "known to be harmless. Of a site also `shares_local_model`, where the policy says so, and `withholds_sizes`, where "
    "it does",
    "client_sizes": "number of examples of each client; none, or rounded up, with `withhold.sizes`",
    "label_counts": "examples of each class, for each client; none with `withhold.label_counts` or withheld sizes",
    "label_names": f"names that the policy lists under `classes`, at most {MAX_NAME} characters; of other classes a "
    f'digest, and "{FEW}" where that is so; with `withhold.class_names` their numbers. '
    f"More than {MAX_CLASSES} classes: refused",
    "watch": "metrics that should stay 0, and advice; words of the workload's code",
    "exponentials": "metrics that are exponentials of others; words of the workload's code",
}


def render() -> str:
    """Return the lists.

    Raises:
        LookupError: something that is sent has no words.
    """
    ways = "; ".join(f"{code(name)} sends {message}" for name, message in calls())
    fields = table(("message", "field", "what it is"), _fields())
    facts = table(("fact", "what it is"), [(code(f"facts.{name}"), words) for name, words in WORDS.items()])
    data = table(("field", "what it is"), _of_data())
    headers = (
        "With each call: `fedloom-node` and `fedloom-session`, as in RegisterRequest. An agent of a server without "
        "members (`serve --insecure`) sends the shared token as `fedloom-token`, and, to prove that it is on the "
        "server's machine, `fedloom-locality`; it has no policy, so none of the following is withheld."
    )
    return "\n\n".join(
        [
            f"The calls of a node: {ways}.",
            headers,
            fields,
            "Facts about the machine:",
            facts,
            "For one node of each run, before round 1 (another, where that one fails), and for every node where nodes "
            f"are clients, what the workload says about the data; never {', '.join(map(code, withheld_facts()))}:",
            data,
        ]
    )


def _fields() -> Iterator[tuple[str, str, str]]:
    before = ""
    for sent in sent_fields():
        yield sent.message if sent.message != before else "", code(sent.field), sent.words
        before = sent.message


def _of_data() -> list[tuple[str, str]]:
    names = [field.name for field in dataclasses.fields(WorkloadInfo)]
    if set(names) != _OF_DATA.keys():
        raise LookupError(f"WorkloadInfo has {names}, {__file__} has words for {sorted(_OF_DATA)}")
    return [(code(name), _OF_DATA[name]) for name in names]
