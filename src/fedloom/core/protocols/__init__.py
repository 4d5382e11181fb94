"""The interfaces between packages: what a strategy, selection, workload, rule, measure, monitor or runtime implements.

The call order of one round, as the server's loop makes it:

    cohort   = selection.choose(...)
    exchange = strategy.plan(state, context)            # which client does what, with which inputs
    total    = the exchange's updates, aggregated by its accumulator where the clients run
    step     = strategy.finish(state, total, context)   # the next state, or one more exchange of this round

Required methods are abstract, optional ones have a default. What only some workloads can do is a capability: a
runtime-checkable protocol (`HasLogits`, `HasActions`, …) that its user requests with `require`.
"""

from fedloom.core.protocols.helper_processes import HelperHandle, Helpers, Resources, UsesHelpers
from fedloom.core.protocols.monitor import Monitor, MonitorReading, MonitorRequest, Observation, Watch
from fedloom.core.protocols.rule import Inputs, LocalRule, RuleChain, Tensors
from fedloom.core.protocols.selection import ExtraReport, Measure, Probe, Roster, Selection
from fedloom.core.protocols.sink import Sink
from fedloom.core.protocols.strategy import Pending, Strategy
from fedloom.core.protocols.workload import (
    Action,
    CanBeEmpty,
    HasActions,
    HasLogits,
    KeepsClientState,
    Shard,
    TrainsGroups,
    Workload,
    WorkloadInfo,
    is_empty,
    require,
)

__all__ = [
    "Strategy",
    "Pending",
    "LocalRule",
    "RuleChain",
    "Inputs",
    "Tensors",
    "Selection",
    "Roster",
    "Probe",
    "ExtraReport",
    "Measure",
    "Workload",
    "WorkloadInfo",
    "Shard",
    "Action",
    "HasActions",
    "CanBeEmpty",
    "HasLogits",
    "KeepsClientState",
    "TrainsGroups",
    "is_empty",
    "require",
    "Monitor",
    "MonitorRequest",
    "MonitorReading",
    "Observation",
    "Watch",
    "Helpers",
    "HelperHandle",
    "Resources",
    "UsesHelpers",
    "Sink",
]
