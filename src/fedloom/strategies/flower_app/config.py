"""Settings of a Flower app's server half."""

from typing import Literal

from pydantic import Field

from fedloom.core.config import PluginSettings
from fedloom.core.setting_types import AppFolder, CodeRef, FreeText


class Config(PluginSettings):
    """A Flower `ServerApp`. It chooses clients and aggregates by itself; we carry its messages."""

    name: str = "flower_app"
    app: AppFolder
    """Folder of the app; on the server's machine, at this path."""
    serverapp: CodeRef
    """The component, `module:object`, as `[tool.flwr.app.components]` has it."""
    run_config: dict[str, bool | int | float | FreeText] = Field(default_factory=dict)
    """`context.run_config`."""
    run_id: int = Field(default=1, ge=1, lt=2**63)
    """`context.run_id` and `grid.run.run_id`. `fedloom run FOLDER` draws one for each run, as Flower does."""
    errors: Literal["replies", "failures"] = "replies"
    """What a client whose app raises, or that sends no reply, is: an error reply, about which the app decides, as under
    Flower; or a failure, of which `round.quorum_fraction` decides. Below a quorum of 1 it is always a failure, and
    `fedloom run FOLDER --set round.quorum_fraction=…` makes it one."""
    resume: Literal["snapshot", "replay", "none"] = "snapshot"
    """How a run resumes after a crash. All three re-run `main` from its start. `snapshot` skips the rounds that
    `Strategy.start` had done (a checkpoint is about three models); an app's own loops are replayed. `replay` stores
    every reply of every round and replays them: `evaluate_fn` is called again for each, memory and checkpoints
    grow with rounds x clients x model. `none` stores nothing, and the run cannot be resumed."""

    def decides_about_failures(self) -> bool:
        return self.errors == "replies"
