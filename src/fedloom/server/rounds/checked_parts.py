"""Checks what users' strategies, selections and monitors return, at each call; fedloom's own are used as they are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from fedloom.core.accumulators import BUILTIN, Accumulator, is_finite
from fedloom.core.blame import Blame, kind_of
from fedloom.core.kinds import Kind
from fedloom.core.pinned import Pinned
from fedloom.core.plugins import AnySelection, AnyStrategy
from fedloom.core.protocols import (
    ExtraReport,
    Monitor,
    MonitorReading,
    MonitorRequest,
    Pending,
    Probe,
    Roster,
    Selection,
    Strategy,
)
from fedloom.core.records import Arrays, ClientReport, Exchange, Info, Record, RoundContext
from fedloom.core.registry import PartRef
from fedloom.core.state import arrays_in

_SHOWN = 4
_Form: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each array."""


def checked_strategy(strategy: AnyStrategy, name: str) -> AnyStrategy:
    """Return a strategy whose results are checked, if it is a user's."""
    blame = Blame(strategy, PartRef(Kind.STRATEGY, name, "strategy"))
    return _CheckedStrategy(strategy, blame) if blame.users else strategy


def checked_selection(selection: AnySelection, name: str) -> AnySelection:
    """Return a selection whose results are checked, if it is a user's."""
    blame = Blame(selection, PartRef(Kind.SELECTION, name, "selection"))
    return _CheckedSelection(selection, blame) if blame.users else selection


def checked_monitor(monitor: Monitor, name: str) -> Monitor:
    """Return a monitor whose results are checked, if it is a user's."""
    blame = Blame(monitor, PartRef(Kind.MONITOR, name, "monitor"))
    return _CheckedMonitor(monitor, blame) if blame.users else monitor


class _States:
    """Checks the states of one part: their class, what they hold, that nobody changes them in place."""

    def __init__(self, blame: Blame, kind: type) -> None:
        self._blame, self._kind = blame, kind
        self._seen: tuple[object, object] | None = None

    def made(self, method: str, state: object) -> None:
        """Refuse a state of another class, or one that cannot be saved; its arrays become read-only."""
        if not isinstance(state, self._kind):
            raise self._blame.wrong(method, f"found {kind_of(state)}, expected a {self._kind.__name__} (State)")
        for field in dataclasses.fields(self._kind):
            self._check_field(method, field.name, getattr(state, field.name))
        for _, _, array in arrays_in(state):
            array.flags.writeable = False
        self._seen = state, _snapshot(state)

    def unchanged(self, method: str, state: object) -> None:
        """Refuse a method that has changed the state it was given."""
        if self._seen is not None and self._seen[0] is state and _snapshot(state) != self._seen[1]:
            raise self._blame.wrong(
                method, "found the state changed in place, expected a new one: dataclasses.replace(state, …)"
            )

    def _check_field(self, method: str, name: str, value: object) -> None:
        values = list(value.values()) if isinstance(value, Mapping) else [value]
        odd = next((each for each in values if type(each).__module__.partition(".")[0] == "torch"), None)
        if odd is not None:
            raise self._blame.wrong(method, f"field {name!r} of the state holds {kind_of(odd)}, expected NumPy arrays")
        if any(isinstance(each, np.ndarray | np.generic | Pinned) for each in values) or isinstance(value, tuple):
            return
        try:
            json.dumps(value)
        except (TypeError, ValueError) as exc:
            raise self._blame.wrong(
                method, f"field {name!r} of the state is {kind_of(value)}, expected arrays or JSON values ({exc})"
            ) from exc


def _snapshot(state: object) -> object:
    """Return what tells that a state was changed in place: the identities of its arrays, and its other values."""
    found = list[object]()
    for field in dataclasses.fields(state):  # type: ignore[arg-type]  # checked to be a dataclass
        value = getattr(state, field.name)
        if isinstance(value, Mapping):
            found.append({key: id(each) if isinstance(each, np.ndarray) else repr(each) for key, each in value.items()})
        else:
            found.append(id(value) if isinstance(value, np.ndarray) else repr(value))
    return found


def _check_json(blame: Blame, method: str, value: object) -> None:
    """Refuse a report that is no JSON object."""
    if not isinstance(value, Mapping):
        raise blame.wrong(method, f"found {kind_of(value)}, expected a dict of JSON values")
    try:
        json.dumps(dict(value))
    except (TypeError, ValueError) as exc:
        raise blame.wrong(method, f"expected a dict of JSON values: {exc}; write float(…) or .tolist()") from exc


def _check_record(blame: Blame, method: str, record: object, what: str) -> None:
    if not isinstance(record, Record):
        raise blame.wrong(method, f"{what} is {kind_of(record)}, expected a Record")
    for group, arrays in record.groups.items():
        _check_arrays(blame, method, arrays, f"group {group!r} of {what}")


def _check_arrays(blame: Blame, method: str, arrays: object, what: str) -> None:
    if not isinstance(arrays, Mapping):
        raise blame.wrong(method, f"{what}: found {kind_of(arrays)}, expected a dict of NumPy arrays by name")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray | np.generic):
            raise blame.wrong(method, f"{what}: array {name!r} is {kind_of(array)}, expected a NumPy array")


class _CheckedStrategy(Strategy[object, Accumulator]):
    """A user's strategy."""

    def __init__(self, strategy: AnyStrategy, blame: Blame) -> None:
        self._inner, self._blame = strategy, blame
        self.State = strategy.State  # type: ignore[misc]  # of this strategy alone
        self.evaluates = strategy.evaluates
        self._states = _States(blame, strategy.State)
        self._form: _Form | None = None

    def init(self, model: Record) -> object:
        with self._blame.calling("init"):
            state = self._inner.init(model)
        self._states.made("init", state)
        self._form = _form_of(self.arrays(state))
        return state

    def plan(self, state: object, context: RoundContext) -> Exchange | None:
        if self._form is None:  # a resumed run
            self._form = _form_of(self.arrays(state))
        with self._blame.calling("plan"):
            exchange: object = self._inner.plan(state, context)
        self._states.unchanged("plan", state)
        return None if exchange is None else self._checked(exchange, context, "plan")

    def finish(self, state: object, total: Accumulator, context: RoundContext) -> object | Pending[object]:
        sound = all(is_finite(array) for group in total.record().groups.values() for array in group.values())
        with self._blame.calling("finish"):
            step: object = self._inner.finish(state, total, context)
        self._states.unchanged("finish", state)
        after = step.state if isinstance(step, Pending) else step
        self._states.made("finish", after)
        odd = [f"{name!r} of {field}" for field, name, array in arrays_in(after) if not is_finite(array)]
        if odd and sound:
            raise self._blame.wrong(
                "finish", f"round {context.round}: {odd[0]} is not finite (NaN or infinity), expected finite numbers"
            )
        if isinstance(step, Pending):
            return Pending(after, self._checked(step.exchange, context, "finish"))
        self._check_form(_form_of(self.arrays(after)))
        return after

    def _check_form(self, form: _Form) -> None:
        """Refuse a model with other arrays than before the round."""
        before = self._form if self._form is not None else form
        if before != form:
            name = min(key for key in before.keys() | form.keys() if before.get(key) != form.get(key))
            was, now = before.get(name), form.get(name)
            differs = was is not None and now is not None and was[0] != now[0]
            hint = f"; write array.astype(np.{was[0]})" if was is not None and differs else ""
            raise self._blame.wrong(
                "arrays", f"array {name!r} is {_shown(now)}, expected {_shown(was)}, as before the round{hint}"
            )

    def arrays(self, state: object) -> Arrays:
        with self._blame.calling("arrays"):
            arrays = self._inner.arrays(state)
        _check_arrays(self._blame, "arrays", arrays, "the model")
        return arrays

    def model_inputs(self, state: object) -> Mapping[str, Record]:
        with self._blame.calling("model_inputs"):
            inputs: object = self._inner.model_inputs(state)
        if not isinstance(inputs, Mapping):
            raise self._blame.wrong("model_inputs", f"found {kind_of(inputs)}, expected a dict of Record by name")
        for name, record in inputs.items():
            _check_record(self._blame, "model_inputs", record, f"input {name!r}")
        return inputs

    def evaluation(self, state: object) -> Mapping[str, float] | None:
        with self._blame.calling("evaluation"):
            found = self._inner.evaluation(state)
        if found is not None:
            _check_json(self._blame, "evaluation", found)
        return found

    def report(self, state: object) -> Info:
        with self._blame.calling("report"):
            found = self._inner.report(state)
        _check_json(self._blame, "report", found)
        return found

    def close(self) -> None:
        self._inner.close()

    def _checked(self, exchange: object, context: RoundContext, method: str) -> Exchange:
        """Return an exchange whose jobs, inputs and names are sound."""
        if not isinstance(exchange, Exchange):
            raise self._blame.wrong(method, f"found {kind_of(exchange)}, expected an Exchange or None")
        for name, record in exchange.inputs.items():
            _check_record(self._blame, method, record, f"input {name!r}")
        strange = [job.client for job in exchange.jobs if job.of_client and not 0 <= job.client < context.population]
        if strange:
            raise self._blame.wrong(
                method, f"found a job of client {strange[0]}, expected clients of the cohort {context.cohort[:_SHOWN]}"
            )
        lacking = sorted({name for job in exchange.jobs for name in job.inputs if name not in exchange.inputs})
        if lacking:
            raise self._blame.wrong(
                method,
                f"jobs read the input {lacking[0]!r}, expected one of the exchange's {sorted(exchange.inputs)}",
            )
        self._check_names(exchange, method)
        return exchange

    def _check_names(self, exchange: Exchange, method: str) -> None:
        named = {"rule": exchange.rules, "accumulator": (exchange.accumulator,)}
        for part, names in named.items():
            for name in names:
                known = part == "accumulator" and name in BUILTIN
                if not known and not PartRef(Kind.STRATEGY, name, part).exists():
                    raise self._blame.wrong(method, f"names the {part} {name!r}, which that strategy does not have")


def _form_of(arrays: Arrays) -> _Form:
    return {name: (array.dtype.name, array.shape) for name, array in arrays.items()}


def _shown(form: tuple[str, tuple[int, ...]] | None) -> str:
    return "missing" if form is None else f"{form[0]} of shape {form[1]}"


class _CheckedSelection(Selection[object]):
    """A user's selection."""

    def __init__(self, selection: AnySelection, blame: Blame) -> None:
        self._inner, self._blame = selection, blame
        self.State = selection.State  # type: ignore[misc]  # of this selection alone
        self._states = _States(blame, selection.State)

    def init(self, roster: Roster) -> object:
        with self._blame.calling("init"):
            state = self._inner.init(roster)
        self._states.made("init", state)
        return state

    def probe(self, state: object, roster: Roster, size: int, rng: np.random.Generator) -> Probe | None:
        with self._blame.calling("probe"):
            probe: object = self._inner.probe(state, roster, size, rng)
        if probe is not None and not isinstance(probe, Probe):
            raise self._blame.wrong("probe", f"found {kind_of(probe)}, expected a Probe or None")
        if probe is not None:
            self._check_clients("probe", probe.candidates, roster)
        self._states.unchanged("probe", state)
        return probe

    def choose(
        self, state: object, roster: Roster, size: int, rng: np.random.Generator, reports: Sequence[ClientReport] = ()
    ) -> tuple[int, ...]:
        with self._blame.calling("choose"):
            chosen: object = self._inner.choose(state, roster, size, rng, reports)
        self._states.unchanged("choose", state)
        return self._check_clients("choose", chosen, roster)

    def extra_report(self, state: object) -> ExtraReport | None:
        with self._blame.calling("extra_report"):
            found: object = self._inner.extra_report(state)
        if found is not None and not isinstance(found, ExtraReport):
            raise self._blame.wrong("extra_report", f"found {kind_of(found)}, expected an ExtraReport or None")
        return found

    def observe(self, state: object, reports: Sequence[ClientReport], probed: Sequence[ClientReport] = ()) -> object:
        with self._blame.calling("observe"):
            after = self._inner.observe(state, reports, probed)
        return self._next("observe", state, after)

    def missed(self, state: object, clients: Sequence[int]) -> object:
        with self._blame.calling("missed"):
            after = self._inner.missed(state, clients)
        return self._next("missed", state, after)

    def grow(self, state: object, roster: Roster) -> object:
        with self._blame.calling("grow"):
            after = self._inner.grow(state, roster)
        return self._next("grow", state, after)

    def report(self, state: object) -> Info:
        with self._blame.calling("report"):
            found = self._inner.report(state)
        _check_json(self._blame, "report", found)
        return found

    def _next(self, method: str, state: object, after: object) -> object:
        self._states.unchanged(method, state)
        self._states.made(method, after)
        return after

    def _check_clients(self, method: str, clients: object, roster: Roster) -> tuple[int, ...]:
        return check_choice(self._blame, method, clients, roster.population)


def check_choice(blame: Blame, method: str, clients: object, population: int) -> tuple[int, ...]:
    """Return the clients that a method chose.

    Raises:
        PluginInvalid: they are no distinct numbers of the roster.
    """
    expected = f"expected a tuple of distinct clients (int) from 0 to {population - 1}"
    if isinstance(clients, str | bytes) or not isinstance(clients, Iterable):
        raise blame.wrong(method, f"found {kind_of(clients)}, {expected}")
    given = tuple(clients)
    odd = [client for client in given if type(client) is not int]
    if odd:
        hint = "; write int(client) or .tolist()" if isinstance(odd[0], np.generic) else ""
        raise blame.wrong(method, f"found {odd[0]!r}, {kind_of(odd[0])}, {expected}{hint}")
    outside = [client for client in given if not 0 <= client < population]
    if outside:
        raise blame.wrong(method, f"found {outside[0]}, {expected}")
    if len(set(given)) < len(given):
        twice = next(client for client in given if given.count(client) > 1)
        raise blame.wrong(method, f"found {twice} more than once in {given[:_SHOWN]}…, {expected}")
    return given


class _CheckedMonitor(Monitor):
    """A user's monitor."""

    def __init__(self, monitor: Monitor, blame: Blame) -> None:
        self._inner, self._blame = monitor, blame

    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        with self._blame.calling("request"):
            found: object = self._inner.request(population, rng)
        if not isinstance(found, MonitorRequest):
            raise self._blame.wrong("request", f"found {kind_of(found)}, expected a MonitorRequest")
        check_choice(self._blame, "request", found.clients, population if found.parts is None else found.parts)
        return found

    def read(self, reports: Sequence[ClientReport], earlier: Sequence[Info]) -> MonitorReading:
        with self._blame.calling("read"):
            found: object = self._inner.read(reports, earlier)
        if not isinstance(found, MonitorReading):
            raise self._blame.wrong("read", f"found {kind_of(found)}, expected a MonitorReading")
        _check_json(self._blame, "read", found.metrics)
        _check_json(self._blame, "read", found.info)
        for name, value in found.metrics.items():
            if not isinstance(value, int | float):
                raise self._blame.wrong("read", f"metric {name!r} is {kind_of(value)}, expected a number")
        return found
