"""Finds mistakes in a user's workload when it is built: file and line, what was found, what was expected."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from fedloom.core.errors import FedloomError, PluginInvalid
from fedloom.core.plugin_faults import plugin_fault
from fedloom.core.text import nearest

_ALIKE = 0.8
"""Similarity from which a method's name counts as a misspelling of a hook."""


def place_of(code: type | Callable[..., object]) -> str:
    """Return file and line of a class or method; its name if they are unknown."""
    try:
        _, line = inspect.getsourcelines(code)
        return f"{inspect.getsourcefile(code)}, line {line}, {code.__qualname__}"
    except (OSError, TypeError):
        return code.__qualname__


def is_own(kind: type) -> bool:
    """Return whether a workload is one of fedloom's."""
    return kind.__module__.startswith("fedloom.")


def check_methods(kind: type, base: type) -> None:
    """Refuse a subclass that lacks a required method, or has one that is misspelt.

    Raises:
        PluginInvalid: it does; the message names class and line.
    """
    hooks = {name: value for name, value in inspect.getmembers(base, inspect.isfunction) if not name.startswith("_")}
    for each in kind.__mro__:
        if each is base:
            break
        for name, value in vars(each).items():
            if name in hooks or name.startswith("_") or not inspect.isfunction(value):
                continue
            meant = nearest(name, [hook for hook in hooks if vars(each).get(hook) is None], cutoff=_ALIKE)
            if meant is not None:
                raise PluginInvalid(
                    f"{place_of(value)}: found a method {name!r}, which nothing calls; expected {meant!r}? Rename it, "
                    "or begin its name with an underscore if it is a helper"
                )
    missing = sorted(name for name in hooks if getattr(kind, name) is hooks[name] and _is_abstract(hooks[name]))
    if missing:
        wanted = ", ".join(f"{name}{_shown(hooks[name])}" for name in missing)
        raise PluginInvalid(f"{place_of(kind)}: the class has no method {' and no '.join(missing)}; expected {wanted}")


def _is_abstract(method: Callable[..., object]) -> bool:
    return bool(vars(method).get("__isabstractmethod__", False))


def _shown(method: Callable[..., object]) -> str:
    """Return a method's signature as in a call."""
    return str(inspect.signature(method)).replace("'", "")


@contextmanager
def blamed(kind: type, method: Callable[..., object], called: str = "") -> Iterator[None]:
    """Add to an exception of a user's method where it was raised, or where the method is.

    Args:
        kind: the workload's class; fedloom's own exceptions are unchanged.
        method: the running method.
        called: its arguments, for the message.
    """
    try:
        yield
    except FedloomError:
        raise
    except Exception as exc:
        if is_own(kind):
            raise
        file = inspect.getsourcefile(kind)
        if any(frame.filename == file for frame in traceback.extract_tb(exc.__traceback__)):
            raise plugin_fault(f"{method.__qualname__}{called}", exc, file) from exc
        raise PluginInvalid(f"{place_of(method)}{called}: {type(exc).__name__}: {exc}") from exc


def check_model(found: object, where: str) -> None:
    """Reject an object that is not a module, or has nothing to train.

    Raises:
        PluginInvalid: the message says what was found.
    """
    if isinstance(found, type) and issubclass(found, nn.Module):
        raise PluginInvalid(f"{where}: found the class {found.__name__}, expected a module: return {found.__name__}(…)")
    if not isinstance(found, nn.Module):
        raise PluginInvalid(f"{where}: found {_kind(found)}, expected a torch.nn.Module")
    if not any(parameter.requires_grad for parameter in found.parameters()):
        raise PluginInvalid(f"{where}: found a module without a trainable parameter, expected at least one")


def check_labels(targets: Tensor, where: str) -> None:
    """Reject targets that are not classes, if the loss is cross-entropy.

    Raises:
        PluginInvalid: the message says what they are.
    """
    name, shape = str(targets.dtype).removeprefix("torch."), tuple(targets.shape)
    if targets.is_floating_point():
        raise PluginInvalid(
            f"{where}: the targets are {name} numbers, expected whole numbers (classes from 0) for the default loss, "
            "cross-entropy. For classes return y.astype(np.int64); for values define loss(self, outputs, targets)"
        )
    if targets.dim() != 1:
        raise PluginInvalid(
            f"{where}: the targets have shape {('n', *shape[1:])}, expected (n,), a class for each example, for the "
            "default loss, cross-entropy. Return y.ravel() or y.argmax(1), or define loss(self, outputs, targets)"
        )
    if len(targets) and int(targets.min()) < 0:
        raise PluginInvalid(f"{where}: a target is {int(targets.min())}, expected classes numbered from 0")


def check_outputs(outputs: object, examples: int, where: str) -> Tensor:
    """Return a model's outputs for some examples; reject anything but a tensor with a row for each.

    Raises:
        PluginInvalid: the message says what they are.
    """
    if not isinstance(outputs, Tensor):
        raise PluginInvalid(
            f"{where}: the model returned {_kind(outputs)}, expected a torch.Tensor; define outputs(self, model, "
            "*inputs) to pick it"
        )
    if not outputs.dim() or len(outputs) != examples:
        raise PluginInvalid(
            f"{where}: the model's output has shape {tuple(outputs.shape)} for {examples} examples, expected "
            f"({examples}, …)"
        )
    return outputs


def check_classes(outputs: Tensor, classes: int, where: str) -> None:
    """Reject outputs without a number for each class.

    Raises:
        PluginInvalid: the message says what they have.
    """
    if outputs.dim() != 2 or outputs.shape[1] < classes:
        raise PluginInvalid(
            f"{where}: the model's output has shape {tuple(outputs.shape)}, expected ({len(outputs)}, {classes}): one "
            f"number for each class, and the labels go up to {classes - 1}"
        )


def check_loss(loss: object, where: str) -> None:
    """Reject a loss that is not a single number, or does not depend on the model's outputs.

    Raises:
        PluginInvalid: the message names the fault.
    """
    if not isinstance(loss, Tensor):
        raise PluginInvalid(
            f"{where}: found {_kind(loss)}, expected a torch.Tensor without dimensions (do not call .item() on it)"
        )
    if loss.dim():
        raise PluginInvalid(
            f"{where}: the loss has shape {tuple(loss.shape)}, expected one number, the mean over the minibatch: "
            "loss.mean()"
        )
    if not loss.requires_grad:
        raise PluginInvalid(
            f"{where}: the loss does not depend on the model's weights (no gradient); expected one computed from "
            "`outputs` with torch, without .detach(), .numpy() or argmax"
        )


def check_augmented(found: object, inputs: Sequence[Tensor], where: str) -> None:
    """Reject changed inputs that are no tuple of as many tensors, each with as many rows.

    Raises:
        PluginInvalid: the message says what they are.
    """
    made = found if isinstance(found, tuple) and all(isinstance(each, Tensor) for each in found) else None
    if made is None or [len(each) for each in made] != [len(each) for each in inputs]:
        shapes = _kind(found) if made is None else str([tuple(each.shape) for each in made])
        raise PluginInvalid(
            f"{where}: found {shapes}, expected a tuple of {len(inputs)} tensor(s) with as many rows as the minibatch: "
            "return (changed,)"
        )


def check_metrics(found: object, where: str) -> None:
    """Reject metrics that are not numbers by name.

    Raises:
        PluginInvalid: the message says which is not.
    """
    if not isinstance(found, Mapping):
        raise PluginInvalid(f"{where}: found {_kind(found)}, expected a dict of name and sum over the minibatch")
    for name, value in found.items():
        single = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, int | float)
        if not isinstance(name, str) or not single:
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            raise PluginInvalid(
                f"{where}: metric {name!r} is {_kind(value)}{shape}, expected one number: a sum over the minibatch"
            )


def _kind(found: object) -> str:
    return "None" if found is None else f"a {type(found).__name__}"
