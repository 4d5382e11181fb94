"""The experiment and its settings.

Every setting is a documented field here or in the `config.py` of the strategy, workload or selection it names. The
only loader is `Experiment.load`; `--set a.b=c` goes through it too.
"""

from fedloom.core.config.experiment import Experiment
from fedloom.core.config.overrides import with_overrides
from fedloom.core.config.sections import (
    INCIDENTAL,
    NODE_STATE_ROUNDS,
    CheckpointSettings,
    EvaluationSettings,
    FleetSettings,
    RoundSettings,
    RuntimeSettings,
    is_incidental,
)
from fedloom.core.config.settings import PluginSettings, Settings, plugin_schema
from fedloom.core.config.validation import config_error

__all__ = [
    "INCIDENTAL",
    "NODE_STATE_ROUNDS",
    "CheckpointSettings",
    "EvaluationSettings",
    "Experiment",
    "FleetSettings",
    "PluginSettings",
    "RoundSettings",
    "RuntimeSettings",
    "Settings",
    "config_error",
    "is_incidental",
    "plugin_schema",
    "with_overrides",
]
