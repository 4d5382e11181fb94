"""Requirements on every client half of a strategy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedloom.core.plugins import build_rules, chained, make_accumulator
from fedloom.core.protocols import LocalRule
from fedloom.core.records import MODEL, Array, Exchange, Info, Mean, Record, Update
from fedloom.core.seeds import generator
from fedloom.testing.federation import COHORTS, MadeUpFederation
from fedloom.testing.records import NOTHING, read_only, record_digest, through_frame


class RuleConformance:
    """Tests of a strategy's client half, on the work of its server half; subclass it and set `name`."""

    name: str
    """The strategy: folder, module or file."""
    settings: Info = NOTHING
    """Its settings; those without a default."""

    def federation(self) -> MadeUpFederation:
        """Make the strategy with made-up clients, which call the rule."""
        return MadeUpFederation(self.name, self.settings)

    def exchange(self) -> Exchange:
        """Return the exchange with the rule's work: by default the strategy's first exchange that names a rule.

        Raises:
            LookupError: there is none.
        """
        federation = self.federation()
        state = federation.start()
        for round in range(1, len(COHORTS) + 1):
            exchange = federation.strategy.plan(state, federation.context(round))
            if exchange is not None and exchange.rules:
                return exchange
            state = federation.round(state, round)
        raise LookupError(f"strategy {self.name!r} names no rule in {len(COHORTS)} rounds")

    def test_it_does_not_write_what_it_only_reads(self) -> None:
        """Check that inputs, local weights and the anchor stay unchanged."""
        exchange = self.exchange()
        for record in exchange.inputs.values():
            read_only(record)  # a write raises
        self._work(self.build(exchange), exchange, freeze=True)

    def test_gradients_keep_their_shapes_and_stay_finite(self) -> None:
        """Check that finite gradients stay finite; shapes and dtypes cannot change in place."""
        exchange = self.exchange()
        for index, gradient in enumerate(self._work(self.build(exchange), exchange)[1]):
            assert np.isfinite(gradient).all(), f"gradient {index} is no longer finite"

    def test_what_leaves_is_an_update_that_can_be_sent(self) -> None:
        """Check that the outgoing update has finite arrays for a frame, and the client's number of examples."""
        exchange = self.exchange()
        update, _ = self._work(self.build(exchange), exchange)
        assert update.num_examples == 3, f"num_examples is {update.num_examples}, the client has 3"
        record = Record(update.groups, update.info)
        assert record_digest(through_frame(record)) == record_digest(record), "a frame changes the update"
        for group, name, array in record.items():
            if array.dtype.kind == "f":
                assert np.isfinite(array).all(), f"array {name!r} of group {group!r} is not finite"

    def test_what_leaves_can_be_aggregated(self) -> None:
        """Check that the strategy's accumulator accepts the outgoing updates of several clients."""
        exchange = self.exchange()
        total = make_accumulator(exchange.accumulator, None)
        for client in range(3):
            total.add(self._work(self.build(exchange), exchange)[0], 1.0, client)
        assert total.count == 3, f"{total.count} of 3 updates were aggregated"

    def test_a_rule_object_serves_one_job(self) -> None:
        """Check that two objects do the same job identically: nothing is stored outside the object."""
        exchange = self.exchange()
        one, other = (self._work(self.build(exchange), exchange) for _ in range(2))
        assert _digest(one[0]) == _digest(other[0]), "a second object makes another update of the same job"
        same = all(np.array_equal(left, right) for left, right in zip(one[1], other[1], strict=True))
        assert same, "a second object makes other gradients of the same job"

    def test_its_state_survives_a_frame(self) -> None:
        """Check that a rule with a state continues from it, over a wire and a disk, with the same bits."""
        exchange = self.exchange()
        first = self.build(exchange)
        first.restore(None)
        self._work(first, exchange)
        state = first.state()
        if state is None:
            return
        digests = []
        for given in (state, through_frame(state)):
            rule = self.build(exchange)
            rule.restore(given)
            digests.append(_digest(self._work(rule, exchange)[0]))
        assert digests[0] == digests[1], "a state that crossed a wire gives another update"

    def build(self, exchange: Exchange) -> LocalRule:
        """Build the rule for one job of an exchange: by default those the exchange names, as one."""
        return chained(build_rules(exchange.rules)) or LocalRule()

    def _work(self, rule: LocalRule, exchange: Exchange, *, freeze: bool = False) -> tuple[Update, list[Array]]:
        """Do the first job, as a step along made-up gradients. Returns the update, and the gradients at the end."""
        job = exchange.jobs[0]
        job = replace(job, knobs={**exchange.knobs, **job.knobs})
        model = rule.incoming(exchange.inputs, job)[MODEL]
        trained = [(group, name) for group, name, array in model.items() if array.dtype.kind == "f"]
        weights = [np.array(model.groups[group][name]) for group, name in trained]
        anchor = [np.array(weight) for weight in weights]
        rng = generator(1, "gradients")
        gradients = [np.asarray(0.1 * rng.normal(size=weight.shape)).astype(weight.dtype) for weight in weights]
        for array in (*weights, *anchor) if freeze else ():
            array.setflags(write=False)
        rule.begin(trained, job.knobs)
        rule.adjust_gradients(gradients, weights, anchor, job.knobs)
        groups: dict[str, dict[str, Array]] = {group: dict(arrays) for group, arrays in model.groups.items()}
        for (group, name), weight, gradient in zip(trained, weights, gradients, strict=True):
            groups[group][name] = np.asarray(weight - gradient)
        update = Update(num_examples=3, groups=groups, metrics={"loss": Mean(3.0, 3.0)})
        return rule.outgoing(update, job.knobs), gradients


def _digest(update: Update) -> str:
    return record_digest(Record(update.groups, update.info))
