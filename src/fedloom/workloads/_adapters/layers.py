"""The low-rank layer: an addition to a module's output, with variable rank.

An adapter is a forward hook on the module it changes, so the model's modules and array names are unchanged. Its
tensors have the largest rank the run will use; a smaller rank is a slice of them, which changes no shape an optimiser
has seen. The scale s is a constant: LoRA's usual alpha/r would multiply the function by r/r' whenever a rank decreases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedloom.adapters.matching import match_modules
from fedloom.core.errors import ConfigError
from fedloom.workloads._adapters.targets import Shape, adaptable, is_conv1d, shape_of, weight_of


class LoraLayer(nn.Module):
    """W x becomes W x + s·B(A x) (Hu et al. 2022, "LoRA", equation 3, with s for alpha/r).

    With gates it is W x + s·B(e ⊙ A x), which is AdaLoRA's P Λ Q with P = B, Q = A and Λ = diag(e).

    Args:
        module: its module; not registered as a submodule.
        shape: the module's weight as a matrix (o, i).
        rank_max: the largest rank r it will be given.
        scale: s, dimensionless.
        gated: whether there are gates e between the factors.
    """

    def __init__(self, module: nn.Module, shape: Shape, rank_max: int, scale: float, *, gated: bool = False) -> None:
        super().__init__()
        weight = weight_of(module)
        dtype = torch.float32 if weight.dtype.itemsize < 4 else weight.dtype  # what is trained has 32 bits
        self.a = nn.Parameter(weight.new_zeros(rank_max, shape.in_, dtype=dtype))
        self.b = nn.Parameter(weight.new_zeros(shape.out, rank_max, dtype=dtype))
        self.e = nn.Parameter(weight.new_zeros(rank_max, dtype=dtype)) if gated else None
        self.rank, self.scale = rank_max, scale
        self._delta = _delta_of(module)

    @property
    def active(self) -> tuple[Tensor, Tensor]:
        """Return A of shape (r, i) and B of shape (o, r) at the active rank, views of the tensors."""
        return self.a[: self.rank], self.b[:, : self.rank]

    @property
    def product(self) -> tuple[Tensor, Tensor]:
        """Return factors whose product is the layer's addition without s: `active` with the gates in B."""
        a, b = self.active
        return (a, b) if self.e is None else (a, b * self.e[: self.rank])

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Return the module's output with the adapter's part added: a forward hook."""
        return torch.add(output, self._delta(args[0], *self.product), alpha=self.scale)


def attach(
    model: nn.Module, targets: Sequence[str], *, rank_max: int, scale: float
) -> tuple[dict[str, LoraLayer], Callable[[], None]]:
    """Attach an adapter to every module that matches a pattern. Values start at zero.

    Returns:
        The adapters by module name, and a function that takes them off again.

    Raises:
        ConfigError: a pattern means no module (the message lists what exists), or the rank does not fit one.
    """
    names = match_modules(targets, adaptable(model), "targets")
    return attach_to(model, names, rank_max=rank_max, scale=scale)


def attach_to(
    model: nn.Module, names: Sequence[str], *, rank_max: int, scale: float, gated: bool = False
) -> tuple[dict[str, LoraLayer], Callable[[], None]]:
    """Attach an adapter to each of these modules; see `attach`."""
    layers, handles = {}, list[RemovableHandle]()
    for name in names:
        module = model.get_submodule(name)
        shape = shape_of(module, name)
        if shape is None:
            raise ConfigError(f"module {name!r} is a {type(module).__name__}, which cannot have an adapter")
        if not 1 <= rank_max <= min(shape.out, shape.in_):
            raise ConfigError(
                f"rank {rank_max} is invalid for {name!r}: expected 1 to {min(shape.out, shape.in_)}, the lesser "
                f"side of its ({shape.out}, {shape.in_}) matrix"
            )
        layers[name] = LoraLayer(module, shape, rank_max, scale, gated=gated)
        handles.append(module.register_forward_hook(layers[name].hook))

    def detach() -> None:
        for handle in handles:
            handle.remove()

    return layers, detach


def weight_change(module: nn.Module, factors: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """Return s·BA in the form of the module's weight: what merging adds to it.

    Args:
        module: whose weight it is.
        factors: A of shape (r, i) and B of shape (o, r).
        scale: s.
    """
    a, b = factors
    change = (b @ a) * scale
    stored = change.T if isinstance(module, nn.Embedding) or is_conv1d(module) else change
    return stored.reshape(weight_of(module).shape)


def merge(model: nn.Module, layers: Mapping[str, LoraLayer]) -> None:
    """Add every adapter's change to its weight; remove the adapters before using the model again."""
    with torch.no_grad():
        for name, layer in layers.items():
            module = model.get_submodule(name)
            weight = weight_of(module)
            weight += weight_change(module, layer.product, layer.scale)


_Delta = Callable[[Tensor, Tensor, Tensor], Tensor]


def _delta_of(module: nn.Module) -> _Delta:
    """Return how B(A x) is computed if this module computes W x."""
    if isinstance(module, nn.Embedding):
        return lambda ids, a, b: F.linear(F.embedding(ids, a.T), b)
    if isinstance(module, nn.Conv2d):
        return lambda x, a, b: _convolved(module, x, a, b)
    return lambda x, a, b: F.linear(F.linear(x, a), b)


def _convolved(module: nn.Conv2d, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Apply a convolution with r filters, then mix its r channels at each place."""
    filters = a.reshape(len(a), module.in_channels, *module.kernel_size)
    narrow = F.conv2d(x, filters, None, module.stride, module.padding, module.dilation)
    return F.conv2d(narrow, b[:, :, None, None])
