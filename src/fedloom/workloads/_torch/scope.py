"""The conditions under which equal work gives equal bits: one thread, deterministic kernels, seeded generators."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from fedloom.core.errors import ConfigError
from fedloom.workloads._torch.settings import TrainingSettings


def choose_device(wanted: str) -> torch.device:
    """Return the device: `cpu`, `cuda`, or for `auto` the one available.

    Raises:
        ConfigError: a GPU is required and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError('workload.training.device: "cuda" is set, but torch finds no GPU here. Set it to "auto"')
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with a fixed workspace
    return torch.device("cuda", torch.cuda.current_device())


def computing(settings: TrainingSettings, device: torch.device) -> AbstractContextManager[object]:
    """Return the scope of a model's computation, in which bfloat16 is used where the settings say so."""
    return torch.autocast(device.type, torch.bfloat16) if settings.precision == "bf16" else nullcontext()


@contextmanager
def exact(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Compute with one thread and deterministic kernels; torch's settings and generators are restored afterwards.

    Args:
        device: the device of the work.
        seed: for torch's global generators inside the scope (dropout, initial weights); None leaves them unchanged.
    """
    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    on_gpu = device.type == "cuda"
    deterministic = torch.are_deterministic_algorithms_enabled()
    if on_gpu and not deterministic:
        torch.use_deterministic_algorithms(True)
    cpu_state = torch.default_generator.get_state() if seed is not None else None
    gpu_state = torch.cuda.get_rng_state(device) if seed is not None and on_gpu else None
    try:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                torch.cuda.manual_seed(seed)
        yield
    finally:
        if cpu_state is not None:
            torch.default_generator.set_state(cpu_state)
        if gpu_state is not None:
            torch.cuda.set_rng_state(gpu_state, device)
        if on_gpu and not deterministic:
            torch.use_deterministic_algorithms(False)
        if threads != 1:
            torch.set_num_threads(threads)
