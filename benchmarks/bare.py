"""The floor: federated averaging as a bare PyTorch loop, in one process or in several that share weights and sums."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from benchmarks.meter import Clock
from benchmarks.work import WORKS, Task, save_result, state_arrays


def views(flat: Tensor, model: nn.Module) -> list[Tensor]:
    """Pieces of a flat tensor in the shapes of the model's parameters."""
    parameters = list(model.parameters())
    pieces = flat.split([parameter.numel() for parameter in parameters])
    return [piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]


def train_clients(
    task: Task, model: nn.Module, weights: list[Tensor], sums: list[Tensor], round: int, clients: Sequence[int]
) -> int:
    """Train each client from `weights` and leave the example-weighted sum in `sums`; returns the examples."""
    parameters: list[Tensor] = list(model.parameters())
    examples = 0
    torch._foreach_zero_(sums)
    for client in clients:
        with torch.no_grad():
            torch._foreach_copy_(parameters, weights)
        n = task.train(model, round, client)
        with torch.no_grad():
            torch._foreach_add_(sums, parameters, alpha=float(n))
        examples += n
    return examples


def work_for(task: Task, flat: Tensor, flat_sums: Tensor, connection: Connection) -> None:
    """A worker: rounds come through the pipe, weights and sums through shared memory."""
    torch.set_num_threads(1)
    model = task.initial_model()
    weights, sums = views(flat, model), views(flat_sums, model)
    while (message := connection.recv()) is not None:
        connection.send(train_clients(task, model, weights, sums, *message))


def longest_first(task: Task, cohort: Sequence[int], parts: int) -> list[list[int]]:
    """The cohort dealt to workers by falling size, each client to the least loaded."""
    lots: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for client in sorted(cohort, key=lambda client: -task.size(client)):
        least = loads.index(min(loads))
        lots[least].append(client)
        loads[least] += task.size(client)
    return lots


def run_alone(task: Task, model: nn.Module, flat: Tensor, clock: Clock) -> None:
    """One process."""
    flat_sums = torch.empty_like(flat)
    weights, sums = views(flat, model), views(flat_sums, model)
    clock.begin()
    for round in range(1, clock.rounds + 1):
        examples = train_clients(task, model, weights, sums, round, task.cohort(round))
        torch.div(flat_sums, examples, out=flat)
        clock.lap()


def run_together(task: Task, flat: Tensor, processes: int, clock: Clock) -> None:
    """Several processes, forked; this one deals and adds."""
    flat.share_memory_()
    flat_sums = [torch.empty_like(flat).share_memory_() for _ in range(processes)]
    context, pipes, workers = mp.get_context("fork"), [], []
    for mine in flat_sums:
        ours, theirs = context.Pipe()
        worker = context.Process(target=work_for, args=(task, flat, mine, theirs), daemon=True)
        worker.start()
        pipes.append(ours)
        workers.append(worker)
    clock.begin()
    for round in range(1, clock.rounds + 1):
        for pipe, clients in zip(pipes, longest_first(task, task.cohort(round), processes), strict=True):
            pipe.send((round, clients))
        examples = sum(pipe.recv() for pipe in pipes)
        torch.add(flat_sums[0], flat_sums[1], out=flat)
        for more in flat_sums[2:]:
            flat.add_(more)
        flat.div_(examples)
        clock.lap()
    for pipe in pipes:
        pipe.send(None)
    for worker in workers:
        worker.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task, clock = Task(WORKS[options.work]), Clock(options.rounds)
    model = task.initial_model()
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    if options.processes == 1:
        run_alone(task, model, flat, clock)
    else:
        run_together(task, flat, options.processes, clock)
    with torch.no_grad():
        torch._foreach_copy_(list(model.parameters()), views(flat, model))
    save_result(options.out, clock.result() | {"accuracy": task.accuracy(model)}, state_arrays(model))


if __name__ == "__main__":
    main()
