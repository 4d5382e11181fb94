"""Withholds optional parts of what leaves a node: sizes, label counts, names of classes, statistics, digests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

from fedloom.core.config import Settings
from fedloom.core.config.sites import are_sites
from fedloom.core.data_schema import UNSIZED
from fedloom.core.errors import PolicyRefused
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.records import Info, JsonObject, Mean, Update

_PLAIN = (
    *("name", "kind", "licence", "shape", "checkpoint", "body", "pad_id", "values"),
    *("held_out", "schema", "columns"),
)
"""Facts of the data that are neither sizes, nor statistics, nor digests of it. What is not listed here leaves only
where nothing is withheld: a workload may describe its data by any fact."""
_DIGESTS, _STATISTICS, _SIZES = ("sha256",), ("mean", "std"), ("num_train", "num_test")


class Withhold(Settings):
    """Optional parts of what a node sends that stay here. Runs that need one of them are refused."""

    label_counts: bool = False
    """Examples of each class."""
    sizes: Literal["exact", "bucketed", "withheld"] = "exact"
    """Numbers of examples: as they are; rounded up to a power of two, also as the weight of updates and metrics; or 1
    in each report, which withholds the examples of each class as well. Runs whose clients are sites weigh all updates
    the same then; others need `round.weighting = "uniform"`, or a cohort of one."""
    class_names: bool = False
    """Names of classes, and digests of them: classes are called by their numbers."""
    statistics: bool = False
    """Means and standard deviations of the data, and other facts of it that are not known to be none."""
    digests: bool = False
    """Digests of the data's files and of its classes: other sites are not compared with this one by them."""
    firing_rates: bool = False
    """How much each class excites a spiking network, which some selections measure."""

    @property
    def any(self) -> bool:
        """Return whether anything is withheld."""
        return self != Withhold()

    def needed(self) -> frozenset[str]:
        """Return what a selection cannot have, by the words of `PluginSettings.needs_of_clients`."""
        missing = {name for name in ("label_counts", "firing_rates") if getattr(self, name)}
        if self.sizes == "withheld":
            missing |= {"sizes", "label_counts"}
        return frozenset(missing)

    def admit(self, needs: Collection[str], selection: str, experiment: Info) -> None:
        """Refuse a run that needs what is withheld.

        Args:
            needs: what its selection needs of clients.
            selection: the selection's name.
            experiment: as the server sent it.

        Raises:
            PolicyRefused: it does; the message says what to change.
        """
        missing = sorted(self.needed() & set(needs))
        if missing:
            raise PolicyRefused(
                f"selection {selection[:80]!r} needs {missing[0].replace('_', ' ')} of clients, which this node "
                "withholds; choose another selection",
                kind="data",
            )
        table = experiment.get("round")
        weighting = table.get("weighting", "examples") if isinstance(table, Mapping) else "examples"
        alike = weighting == "uniform" or experiment.get("cohort") == 1 or are_sites(experiment.get("clients"))
        if self.sizes == "withheld" and not alike:
            raise PolicyRefused(
                f"this node withholds its number of examples, and round.weighting is {str(weighting)[:20]!r}; set "
                "round.weighting = 'uniform'",
                kind="data",
            )

    def admit_measure(self, facts: Collection[str], measure: str) -> None:
        """Refuse a measure that may report what is withheld.

        Raises:
            PolicyRefused: it may.
        """
        withheld = sorted(self.needed() & set(facts))
        if withheld:
            raise PolicyRefused(
                f"measure {measure[:80]!r} may report {withheld[0].replace('_', ' ')}, which this node withholds",
                kind="data",
            )

    def described(self, info: WorkloadInfo) -> WorkloadInfo:
        """Return a workload's description as it may leave."""
        if not self.any:
            return info
        counted = not self.label_counts and self.sizes != "withheld"
        counts = [[self.size(count) for count in client] for client in info.label_counts] if counted else ()
        return replace(
            info,
            data=self._facts(info.data),
            client_sizes=() if self.sizes == "withheld" else [self.size(size) for size in info.client_sizes],
            label_counts=counts,
            label_names=[f"class {index}" for index, _ in enumerate(info.label_names)]
            if self.class_names
            else info.label_names,
        )

    def update(self, update: Update) -> Update:
        """Return an update with its number of examples, and the weights of its metrics, as they may leave."""
        if self.sizes == "exact" or not update.num_examples:
            return update
        examples = self.size(update.num_examples)
        metrics = {name: self._metric(mean, examples / update.num_examples) for name, mean in update.metrics.items()}
        return replace(update, num_examples=examples, metrics=metrics)

    def size(self, examples: int) -> int:
        """Return a number of examples as it may leave; 0 stays 0."""
        if self.sizes == "exact" or examples == 0:
            return examples
        return 1 if self.sizes == "withheld" else 1 << (examples - 1).bit_length()

    def _metric(self, mean: Mean, factor: float) -> Mean:
        if self.sizes == "withheld":
            return Mean(mean.sum / mean.weight, 1.0) if mean.weight else mean
        return Mean(mean.sum * factor, mean.weight * factor)

    def _facts(self, data: Info) -> JsonObject:
        """Return the facts of the data that may leave."""
        allowed = {*_PLAIN}
        allowed |= set() if self.digests else set(_DIGESTS)
        allowed |= set() if self.statistics else set(_STATISTICS)
        sizes = {} if self.sizes == "withheld" else {key: data[key] for key in _SIZES if key in data}
        facts: JsonObject = {key: value for key, value in data.items() if key in allowed}
        facts |= {key: self.size(value) if isinstance(value, int) else value for key, value in sizes.items()}
        if self.sizes == "withheld":
            facts[UNSIZED] = True
        if isinstance(schema := data.get("schema"), Mapping):
            facts["schema"] = self._schema(schema)
        return facts

    def _schema(self, schema: Info) -> JsonObject:
        """Return what other sites are compared by, with the names of what is missing."""
        hidden = {
            *(_STATISTICS if self.statistics else ()),
            *(("classes",) if self.digests or self.class_names else ()),
        }
        missing = sorted(hidden & schema.keys())
        shown: JsonObject = {key: value for key, value in schema.items() if key not in hidden}
        return {**shown, "withheld": missing} if missing else shown
