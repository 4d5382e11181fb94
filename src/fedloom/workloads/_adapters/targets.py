"""The modules of a model that can have an adapter, and their description for the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fedloom.core.records import Info
from fedloom.workloads._torch.whole import travelling


@dataclass(frozen=True, slots=True)
class Shape:
    """A module's weight as a matrix W of shape (out, in), which an adapter changes by s·BA."""

    weight: str
    """Name of the weight among the model's arrays."""
    out: int
    """Rows o: output features, or the embedding's width."""
    in_: int
    """Columns i: input features (times the kernel's area for a convolution), or the embedding's vocabulary."""
    kind: str
    """`linear`, `conv1d` (transformers'), `conv2d` or `embedding`; weights of `conv1d` and `embedding` are stored as
    (in, out)."""
    kernel: tuple[int, int] | None = None
    """Height and width of a convolution's filters."""

    def info(self) -> Info:
        """Return it as JSON, under the server's names."""
        reported = {"kind": self.kind, "weight": self.weight, "out": self.out, "in": self.in_}
        return {**reported, "kernel": list(self.kernel)} if self.kernel else reported


def shape_of(module: nn.Module, name: str) -> Shape | None:
    """Return the module's shape; None if it cannot have an adapter."""
    weight = f"{name}.weight"
    match module:
        case nn.Linear():
            return Shape(weight, module.out_features, module.in_features, "linear")
        case nn.Embedding():
            return Shape(weight, module.embedding_dim, module.num_embeddings, "embedding")
        case nn.Conv2d() if module.groups == 1 and module.padding_mode == "zeros":
            height, width = module.kernel_size
            return Shape(weight, module.out_channels, module.in_channels * height * width, "conv2d", (height, width))
        case _ if is_conv1d(module):
            rows, columns = weight_of(module).shape
            return Shape(weight, columns, rows, "conv1d")
    return None


def is_conv1d(module: nn.Module) -> bool:
    """Return whether this is transformers' Conv1D, a linear layer with weight (in, out); never imports it."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def adaptable(model: nn.Module) -> dict[str, Shape]:
    """Return every module that can have an adapter, by name, in the model's order.

    Two kinds are excluded: modules inside `nn.MultiheadAttention`, which uses its projections' weights without
    calling them, and modules that share their weight with another (an output layer tied to the embedding), where a
    change of one would be a change of both.
    """
    named = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    tied = {key for key, count in Counter(named).items() if count > 1}
    closed = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    shapes = {
        name: shape_of(module, name)
        for name, module in model.named_modules()
        if not (closed and name.startswith(closed))
    }
    return {
        name: shape
        for name, shape in shapes.items()
        if shape is not None and id(model.get_parameter(shape.weight)) not in tied
    }


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of a module that can have an adapter.

    Raises:
        TypeError: it has none; check with `shape_of` first.
    """
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"expected a module with a weight, got {type(module).__name__} with {type(weight).__name__}")
    return weight


def output_layer(model: nn.Module) -> tuple[str, nn.Linear]:
    """Return name and module of the last linear layer: the head of a classifier that ends in one."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def model_info(model: nn.Module, head: Sequence[str] = ()) -> Info:
    """Return the `info` for strategies in a workload's initial record.

    Args:
        model: the model whose arrays travel; what needs no gradient does not, and carries no adapter.
        head: names of the modules that are trained whole, besides the adapters (the task's head).

    Returns:
        `adaptable`, for each module that can carry an adapter its `kind`, `weight`, `out` and `in`; and `head`,
        the names of the head's arrays.
    """
    inside = tuple(f"{name}." for name in head)
    arrays = [name for name in travelling(model) if name.startswith(inside)] if inside else []
    shapes: Mapping[str, Shape] = {
        name: shape
        for name, shape in adaptable(model).items()
        if not (inside and f"{name}.".startswith(inside)) and model.get_parameter(shape.weight).requires_grad
    }
    return {"adaptable": {name: shape.info() for name, shape in shapes.items()}, "head": arrays}
