"""Makes the parts of a run of files that its settings name: a model by reference, a table, arrays, a data set."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import TypeAlias, cast

import numpy as np

from fedloom.core.errors import ConfigError, DataMissing, FedloomError, PluginInvalid
from fedloom.core.extras import needed_by
from fedloom.core.plugin_faults import plugin_fault, raised_in
from fedloom.core.records import Array
from fedloom.core.registry import load_file
from fedloom.workloads._base.checks import place_of
from fedloom.workloads._base.examples import Examples
from fedloom.workloads._data.images import load_images
from fedloom.workloads._data.labels import doubts
from fedloom.workloads._data.settings import Images
from fedloom.workloads.torch.config import OWN_MODELS, Config, Csv, DatasetRef, HubFolder, Npy, Npz, Parquet
from fedloom.workloads.torch.data import ReadData, Reading, read_data
from fedloom.workloads.torch.image_models import image_model, is_named
from fedloom.workloads.torch.making import parts_of
from fedloom.workloads.torch.parts import Parts
from fedloom.workloads.torch.standard import Moments, standardise
from fedloom.workloads.torch.table_files import read_frame
from fedloom.workloads.torch.tables import own_model
from fedloom.workloads.torch.types import LossFunction, Model, Task

AnyData: TypeAlias = Csv | Parquet | Npz | Npy | HubFolder | Images | DatasetRef
"""Settings of a source."""
_SHOWN = 8


def parts_of_settings(config: Config) -> Parts:
    """Return the model and the data that the settings name.

    Raises:
        DataMissing: a file is not here, or cannot be read.
        ConfigError: a setting does not fit the data.
        PluginInvalid: the user's code cannot be imported, or is not what it should be.
    """
    if config.model is None or config.data is None:
        raise ConfigError("workload.model, workload.data: required, but missing")
    place = data_place(config.data)
    with _placed(place):
        read = _read(config.data, _title(config))
    model: Model = (
        own_model(config.model, config.mlp.hidden, read.examples, config.task)
        if config.model in OWN_MODELS
        else image_model(config.model, read.examples, config.task)
        if is_named(config.model)
        else cast("Model", referred(config.model, "workload.model"))
    )
    loss: LossFunction | None = (
        None if config.loss is None else cast("LossFunction", referred(config.loss, "workload.loss"))
    )
    with _placed(place):
        parts = parts_of(model, read, task=config.task, loss=loss)
    return replace(parts, notes=(*parts.notes, *_doubts(read.examples, parts.task)), data_place=place)


def _doubts(examples: Examples, task: Task) -> list[str]:
    """Return what may be wrong with classes that were found, in words."""
    if task != "classification" or not isinstance(examples.train, tuple):
        return []
    if examples.label_names:
        alone = [f"all examples are of one class, {examples.label_names[0]!r}"] * (len(examples.label_names) == 1)
        return [*alone, *doubts(examples.label_names)]
    present = set(np.unique(np.asarray(examples.train[-1])).tolist())
    lacking = [str(number) for number in range(int(max(present)) + 1) if number not in present]
    return [f"no example of the classes {', '.join(lacking[:_SHOWN])}{' …' * (len(lacking) > _SHOWN)}"] * bool(lacking)


def data_place(settings: AnyData) -> str:
    """Return where examples come from, for errors: file and line of a user's function."""
    if not isinstance(settings, DatasetRef):
        return "data"
    function = referred(settings.train, "workload.data")
    return place_of(function) if isinstance(function, type | FunctionType) else f"data ({settings.train})"


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Let errors about the data begin with where it comes from.

    Raises:
        PluginInvalid: so changed.
    """
    try:
        yield
    except PluginInvalid as exc:
        head, found, rest = str(exc).partition(": ")
        if found and ", line " in place and head.startswith(("data", "test")):
            raise PluginInvalid(f"{place}: {rest}") from exc
        raise


def _read(settings: AnyData, title: str) -> ReadData:
    """Return the examples of a source."""
    if isinstance(settings, Images):
        return _pictures(settings, title)
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    if isinstance(settings, Csv | Parquet | HubFolder):
        labels = (settings.label,) if isinstance(settings.label, str) else settings.label
        columns = settings.features
    train, test = _data(settings)
    how = Reading(labels=labels, columns=columns, test_fraction=settings.test_fraction, title=title)
    read = _read_with_path(train, test, how, settings)
    read = replace(read, examples=replace(read.examples, kind=settings.kind, licence=settings.licence))
    if isinstance(settings, DatasetRef) or not settings.standardise:
        return read
    given = None
    if settings.mean is not None and settings.std is not None:
        given = Moments(np.array(settings.mean, np.float64), np.array(settings.std, np.float64))
    examples, moments = standardise(read.examples, given)
    return replace(read, examples=examples, moments=moments, facts=moments.facts)


def _read_with_path(train: object, test: object, how: Reading, settings: AnyData) -> ReadData:
    """Return data as examples; what is wrong with data of files is an error that begins with their path."""
    try:
        return read_data(train, test, how)
    except PluginInvalid as exc:
        if isinstance(settings, DatasetRef):
            raise
        raise DataMissing(f"{_place(settings)}: {str(exc).removeprefix('data: ')}") from exc


def _pictures(settings: Images, title: str) -> ReadData:
    """Return image files in class folders as examples, normalised by channel."""
    found = load_images(settings)
    facts = {name: found.info[name] for name in ("mean", "std", "shape")}
    examples = Examples(
        train=(found.x_train, found.y_train),
        test=(found.x_test, found.y_test),
        groups=() if found.groups is None else found.groups.tolist(),
        label_names=tuple(found.info["label_names"]),
        title=title,
        kind=settings.kind,
        licence=settings.licence,
    )
    return ReadData(examples=examples, facts=facts)


def referred(reference: str, setting: str) -> Callable[..., object]:
    """Return the class or function that `FILE.py:NAME` or `MODULE:NAME` refers to.

    Raises:
        ConfigError: the text has another form.
        PluginInvalid: it cannot be imported, or has no such name.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ConfigError(f'{setting}: expected "./FILE.py:NAME" or "MODULE:NAME", got {reference!r}')
    try:
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise ConfigError(f"{setting}: file {place!r} not found (looked in {Path.cwd()})")
            module = load_file(Path(place))
        else:
            module = importlib.import_module(place)
    except FedloomError:
        raise
    except Exception as exc:
        raise plugin_fault(f"{setting}: {place} cannot be imported", exc) from exc
    found: object = vars(module).get(name)
    if not callable(found):
        known = ", ".join(sorted(key for key, value in vars(module).items() if callable(value) and key[0] != "_"))
        where = f"{module.__file__}: {setting}"
        raise PluginInvalid(f"{where}: expected a class or function {name!r}; found {known or 'none'}")
    return found


def _title(config: Config) -> str:
    return "own data" if config.data is None else config.data.title or Path(_place(config.data)).name


def _place(data: AnyData) -> str:
    """Return the path or reference of a source."""
    match data:
        case DatasetRef():
            return data.train
        case Npy():
            return data.inputs
        case HubFolder():
            return data.dataset
        case Images():
            return data.folder
        case _:
            return data.file


def _data(settings: Csv | Parquet | Npz | Npy | HubFolder | DatasetRef) -> tuple[object, object]:
    """Return the training and the test data; the latter None without any."""
    match settings:
        case DatasetRef():
            made = [None if each is None else _called(each) for each in (settings.train, settings.test)]
            return made[0], made[1]
        case Npy():
            return (_array(settings.inputs), _array(settings.targets)), None
        case Npz():
            return _archive(settings)
        case HubFolder():
            return _saved(settings)
        case _:
            held = None if settings.test_file is None else read_frame(settings, _file(settings.test_file))
            return read_frame(settings, _file(settings.file)), held


def _called(reference: str) -> object:
    function = referred(reference, "workload.data")
    try:
        return function()
    except Exception as exc:
        if not raised_in(exc) and isinstance(function, type | FunctionType):
            raise PluginInvalid(f"{place_of(function)}: {type(exc).__name__}: {exc}") from exc
        raise plugin_fault(f"workload.data: {reference}", exc) from exc


def _array(file: str) -> Array:
    try:
        found: Array = np.load(_file(file), allow_pickle=False)
        return found
    except (ValueError, OSError, EOFError) as exc:
        raise DataMissing(f"{file}: not a NumPy file that can be read: {exc}") from exc


def _archive(settings: Npz) -> tuple[object, object]:
    try:
        with np.load(_file(settings.file), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError) as exc:
        raise DataMissing(f"{settings.file}: not a NumPy archive that can be read: {exc}") from exc
    missing = [name for name in (settings.inputs, settings.targets) if name not in arrays]
    if missing:
        raise DataMissing(f"{settings.file}: expected an array {missing[0]!r}, found {', '.join(arrays)}")
    held = [arrays[name] for name in (settings.test_inputs, settings.test_targets) if name in arrays]
    return (arrays[settings.inputs], arrays[settings.targets]), tuple(held) if len(held) == 2 else None


def _saved(settings: HubFolder) -> tuple[object, object]:
    """Return the splits of a saved data set; the second None if there is none, or no split named `test`."""
    with needed_by("workload.data.source = 'huggingface'"):
        import datasets
    path = Path(settings.dataset).expanduser()
    if not path.is_dir():
        raise DataMissing(f"workload.data: folder {str(path)!r} not found (looked from {Path.cwd()})")
    try:
        found = datasets.load_from_disk(str(path))
    except (ValueError, OSError) as exc:
        raise DataMissing(f"{settings.dataset}: not a folder written by save_to_disk: {exc}") from exc
    if not isinstance(found, datasets.DatasetDict):
        return found, None
    if "train" not in found:
        raise DataMissing(f"{settings.dataset}: expected a split 'train', found {', '.join(map(str, found))}")
    return found["train"], found.get("test")


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataMissing(f"workload.data: file {str(path)!r} not found (looked from {Path.cwd()})")
    return path
