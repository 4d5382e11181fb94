"""A user's strategy whose results are checked at each call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from fedloom.core.accumulators import BUILTIN, Accumulator, is_finite
from fedloom.core.blame import Blame, kind_of
from fedloom.core.kinds import Kind
from fedloom.core.plugins import AnyStrategy
from fedloom.core.protocols import (
    Pending,
    Strategy,
)
from fedloom.core.records import Arrays, Exchange, Info, Record, RoundContext
from fedloom.core.registry import PartRef
from fedloom.core.state import arrays_in
from fedloom.server.rounds.result_checks import SHOWN, States, check_arrays, check_json, check_record

_Form: TypeAlias = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each array."""


class CheckedStrategy(Strategy[object, Accumulator]):
    """A user's strategy."""

    def __init__(self, strategy: AnyStrategy, blame: Blame) -> None:
        self._inner, self._blame = strategy, blame
        self.State = strategy.State  # type: ignore[misc]  # of this strategy alone
        self.evaluates = strategy.evaluates
        self._states = States(blame, strategy.State)
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
        check_arrays(self._blame, "arrays", arrays, "the model")
        return arrays

    def model_inputs(self, state: object) -> Mapping[str, Record]:
        with self._blame.calling("model_inputs"):
            inputs: object = self._inner.model_inputs(state)
        if not isinstance(inputs, Mapping):
            raise self._blame.wrong("model_inputs", f"found {kind_of(inputs)}, expected a dict of Record by name")
        for name, record in inputs.items():
            check_record(self._blame, "model_inputs", record, f"input {name!r}")
        return inputs

    def evaluation(self, state: object) -> Mapping[str, float] | None:
        with self._blame.calling("evaluation"):
            found = self._inner.evaluation(state)
        if found is not None:
            check_json(self._blame, "evaluation", found)
        return found

    def report(self, state: object) -> Info:
        with self._blame.calling("report"):
            found = self._inner.report(state)
        check_json(self._blame, "report", found)
        return found

    def close(self) -> None:
        self._inner.close()

    def _checked(self, exchange: object, context: RoundContext, method: str) -> Exchange:
        """Return an exchange whose jobs, inputs and names are sound."""
        if not isinstance(exchange, Exchange):
            raise self._blame.wrong(method, f"found {kind_of(exchange)}, expected an Exchange or None")
        for name, record in exchange.inputs.items():
            check_record(self._blame, method, record, f"input {name!r}")
        strange = [job.client for job in exchange.jobs if job.of_client and not 0 <= job.client < context.population]
        if strange:
            raise self._blame.wrong(
                method, f"found a job of client {strange[0]}, expected clients of the cohort {context.cohort[:SHOWN]}"
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
