"""Settings of a PyTorch model of your own on rows."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self, TypeAlias

import pydantic
from pydantic import Field

from fedloom.core.config import Settings
from fedloom.core.errors import ConfigError
from fedloom.core.setting_types import ALL_OTHERS, CodeRef, ColumnName, DataPath, FreeText, Known, PlainWord
from fedloom.workloads._base.settings import TorchConfig
from fedloom.workloads._data.settings import Fraction, Images, LocalData
from fedloom.workloads._vision.augment_settings import AugmentSettings

Digest = Annotated[PlainWord, Field(pattern="^[0-9a-f]{64}$")]
"""A SHA-256, in hexadecimal."""
Task: TypeAlias = Literal["classification", "binary", "multilabel", "regression"]
"""What a model learns: one class of several, yes or no by one output, several labels at once, numbers."""
OWN_MODELS = frozenset({"mlp", "logistic"})
"""Names of the models for tables of numbers that come with fedloom."""


class Objects(Settings):
    """Digests of the Python objects of the run, which are in no file; `fedloom.run(model=…, data=…)` writes them."""

    code: Digest
    """Digest of the source of the model, of the functions given with it, and of the shapes of its arrays."""
    weights: Digest
    """Digest of the initial weights of a model that was given as an object; of its name where it was a class or a
    function."""
    data: Digest
    """Digest of the examples: of the values of arrays and frames; of a data set's length and targets."""


class _HeldOut(LocalData):
    """Examples of which a part is held out."""

    test_fraction: Fraction = 0.2
    """Fraction held out if there is no test set."""


class _Values(_HeldOut):
    """Inputs that are arrays of numbers."""

    standardise: bool = False
    """Take each column's mean from the inputs (each channel's, of images), and divide by its deviation: those of all
    examples but a test file's, which each node computes of its own."""
    mean: tuple[float, ...] | None = None
    """The means to take instead, one for each column, such as the same ones for all sites."""
    std: tuple[Annotated[float, Field(gt=0.0)], ...] | None = None
    """The deviations to divide by; set together with `mean`."""

    @pydantic.model_validator(mode="after")
    def _has_both_moments(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ConfigError("workload.data.mean and workload.data.std: expected both, with one value per column each")
        if self.mean is not None and not self.standardise:
            raise ConfigError("workload.data.mean: without effect unless workload.data.standardise = true")
        return self


class _Table(_Values):
    """A table of numbers with a column of targets."""

    file: DataPath
    """The table."""
    test_file: DataPath | None = None
    """Held-out examples, the same columns."""
    label: ColumnName | tuple[ColumnName, ...] = "label"
    """Column of the targets: whole numbers or text for classes, other numbers for a regression. A list of columns is
    several labels at once, each 0 or 1, or several numbers."""
    features: Annotated[tuple[ColumnName, ...], ALL_OTHERS] = ()
    """Columns of the inputs, numbers; none named takes all others, which nodes that have joined a server refuse."""


class Csv(_Table):
    """A CSV file with a header line."""

    source: Literal["csv"] = "csv"
    delimiter: Annotated[FreeText, Field(min_length=1, max_length=1)] = ","
    """Character between the cells of a line."""
    decimal: Literal[".", ","] = "."
    """Decimal mark of numbers."""
    encoding: PlainWord | None = None
    """Encoding of the files, as Python names it (`latin-1`, `cp1252`); None reads UTF-8, and UTF-16 with its mark."""


class Parquet(_Table):
    """A Parquet file."""

    source: Literal["parquet"] = "parquet"


class Npz(_Values):
    """A NumPy archive with inputs and targets."""

    source: Literal["npz"] = "npz"
    file: DataPath
    """The `.npz` file."""
    inputs: ColumnName = "x"
    """Array of the inputs, (n, …)."""
    targets: ColumnName = "y"
    """Array of the targets, (n, …)."""
    test_inputs: ColumnName = "x_test"
    """Array of the held-out inputs, if there is one."""
    test_targets: ColumnName = "y_test"
    """Array of the held-out targets."""


class Npy(_Values):
    """Two NumPy files."""

    source: Literal["npy"] = "npy"
    inputs: DataPath
    """File of the inputs, (n, …)."""
    targets: DataPath
    """File of the targets, (n, …)."""


class HubFolder(_Values):
    """A data set of Hugging Face on disk, or one with the splits `train` and, optionally, `test`."""

    source: Literal["huggingface"] = "huggingface"
    dataset: DataPath
    """Folder written by `save_to_disk`."""
    label: ColumnName | tuple[ColumnName, ...] = "label"
    """Column of the targets, or a list of them, as in a table."""
    features: Annotated[tuple[ColumnName, ...], ALL_OTHERS] = ()
    """Columns of the inputs; none named takes all others, which nodes that have joined a server refuse."""


class DatasetRef(_HeldOut):
    """A PyTorch data set, or anything else that `fedloom.run` takes as `data`, made by a function of yours."""

    source: Literal["dataset"] = "dataset"
    train: CodeRef
    """`./data.py:make`, a function without arguments that returns it."""
    test: CodeRef | None = None
    """The same for the held-out examples."""


class Mlp(Settings):
    """The model `mlp`."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    """Neurons of each hidden layer; between them rectifiers."""


Data = Annotated[Csv | Parquet | Npz | Npy | HubFolder | Images | DatasetRef, Field(discriminator="source")]


class Config(TorchConfig):
    """A PyTorch model of your own on rows of your own."""

    name: str = "torch"
    model: Annotated[CodeRef, Known(OWN_MODELS)] | None = None
    """`./net.py:Net`, a class or function that makes a module without arguments; for tables of numbers `mlp` or
    `logistic` (softmax regression; for other tasks a linear one); for images `timm:NAME`, or `transformers:PLACE`, an
    image classifier's folder or name on the hub, with its weights."""
    mlp: Mlp = Mlp()
    data: Data | None = None
    """The examples; its `source` selects the kind."""
    task: Task | None = None
    """What the model learns; None infers it from targets and outputs."""
    loss: CodeRef | None = None
    """`./net.py:loss`, the mean loss of a minibatch of outputs and targets; None takes the task's."""
    augment: AugmentSettings = AugmentSettings()
    pretrained: DataPath | None = None
    """Start from the final model of another run (its folder) or a `.safetensors` file of the same arrays."""
    objects: Objects | None = None
    """The model and the data of a Python program, in place of `model` and `data`; `fedloom.run` sets it."""

    @pydantic.model_validator(mode="after")
    def _has_model_and_data(self) -> Self:
        named = {"model": self.model, "data": self.data, "loss": self.loss, "task": self.task}
        if self.objects is not None:
            given = next((name for name, value in named.items() if value is not None), None)
            if given is not None:
                raise ConfigError(f"workload.{given}: without effect beside workload.objects; remove it")
            return self
        for name in ("model", "data"):
            if named[name] is None:
                raise ConfigError(
                    f'workload.{name}: required, but missing; expected model = "./net.py:Net" and [workload.data] '
                    "with a source, or a run from Python: fedloom.run(model=…, data=…)"
                )
        return self

    def objects_key(self) -> str:
        return "" if self.objects is None else hashlib.sha256(self.objects.model_dump_json().encode()).hexdigest()

    def clients_have_state(self) -> bool:
        return False
