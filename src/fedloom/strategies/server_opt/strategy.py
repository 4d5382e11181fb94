"""Server optimisers: the next model is a step along the difference between the round's mean and the model.

Symbols: w_t global weights, Delta_t = mean_k(w_k) - w_t the pseudo-gradient, m_t and v_t its moments, eta the server's
learning rate. All are element-wise and in the unit of a model weight (v in its square).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedloom.core.accumulators import RunningMean
from fedloom.core.config import Experiment
from fedloom.core.protocols import Strategy
from fedloom.core.records import MODEL, UNTRAINED, Array, Arrays, Exchange, Record, RoundContext
from fedloom.strategies.fedavg import strategy as fedavg
from fedloom.strategies.server_opt.config import Config

_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"})

SecondMoment = Callable[[Array, Array], Array]
"""Maps (v, Delta²) to the next v; a new array."""


@dataclass(frozen=True, slots=True)
class Moments:
    """The global model and the optimiser's moments, by name.

    `m` and `v` have entries for trained floating-point arrays only, in float64 if the model's array is, otherwise
    float32. `v` is empty for `momentum`.
    """

    model: Arrays
    m: Arrays
    v: Arrays


class ServerOptimizer(Strategy[Moments, RunningMean]):
    """The shared round of the four optimisers: average as `fedavg` does, then step along the pseudo-gradient.

    Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 2. There is no bias correction: the paper has none
    and starts v at tau² instead. Integer and boolean arrays (counters), and those the workload names as untrained
    (running statistics, whose step could make a variance negative), have no direction to step in; they become the mean.
    """

    State = Moments

    def __init__(
        self,
        *,
        learning_rate: float,
        first: tuple[float, float],
        second: SecondMoment | None = None,
        tau: float = 0.0,
    ) -> None:
        """Store the update rule.

        Args:
            learning_rate: eta.
            first: (a, b) of m_t = a m_{t-1} + b Delta_t.
            second: v_t from v_{t-1} and Delta_t²; None steps along m_t alone.
            tau: added to sqrt(v_t); v starts at its square.
        """
        self._averaging = fedavg.FedAvg()
        self._learning_rate = learning_rate
        self._decay, self._gain = first
        self._second = second
        self._tau = tau

    def init(self, model: Record) -> Moments:
        arrays = model.groups[MODEL]
        untrained = frozenset(model.info.get(UNTRAINED, ()))
        steps = {
            name: _moment_dtype(array)
            for name, array in arrays.items()
            if array.dtype.name in _FLOATS and name not in untrained
        }
        m = {name: np.zeros(arrays[name].shape, dtype) for name, dtype in steps.items()}
        v = {name: np.full(arrays[name].shape, self._tau**2, dtype) for name, dtype in steps.items()}
        return Moments(arrays, m, v if self._second else {})

    def plan(self, state: Moments, context: RoundContext) -> Exchange | None:
        return self._averaging.plan(fedavg.GlobalModel(state.model), context)

    def finish(self, state: Moments, total: RunningMean, context: RoundContext) -> Moments:
        model = dict(total.value()[MODEL])
        m, v = dict(state.m), dict(state.v)
        for name, moment in state.m.items():
            w = state.model[name].astype(moment.dtype, copy=False)
            delta = model[name].astype(moment.dtype, copy=False) - w
            # asarray: arithmetic on arrays without dimensions gives scalars
            m[name] = np.asarray(self._decay * moment + self._gain * delta)
            step = self._learning_rate * m[name]
            if self._second:
                v[name] = np.asarray(self._second(state.v[name], delta * delta))
                step = step / (np.sqrt(v[name]) + self._tau)
            model[name] = np.asarray(w + step).astype(state.model[name].dtype, copy=False)
        return Moments(model, m, v)

    def arrays(self, state: Moments) -> Arrays:
        return state.model


def build_strategy(config: Config, experiment: Experiment) -> ServerOptimizer:
    """Return the optimiser a `Config` describes.

    `momentum`: m_t = beta m_{t-1} + Delta_t, w_{t+1} = w_t + eta m_t (Hsu et al. 2019, "Measuring the Effects of
    Non-Identical Data Distribution for Federated Visual Classification", section 4.3, FedAvgM).

    The others, Reddi et al. 2021, Algorithm 2: m_t = beta1 m_{t-1} + (1 - beta1) Delta_t and w_{t+1} = w_t +
    eta m_t / (sqrt(v_t) + tau), with

        adagrad   v_t = v_{t-1} + Delta_t²
        yogi      v_t = v_{t-1} - (1 - beta2) Delta_t² sign(v_{t-1} - Delta_t²)
        adam      v_t = beta2 v_{t-1} + (1 - beta2) Delta_t²
    """
    assert config.learning_rate is not None  # `Config` fills in the optimiser's defaults
    if config.optimizer == "momentum":
        assert config.momentum is not None
        return ServerOptimizer(learning_rate=config.learning_rate, first=(config.momentum, 1.0))
    assert config.beta1 is not None and config.tau is not None
    return ServerOptimizer(
        learning_rate=config.learning_rate,
        first=(config.beta1, 1.0 - config.beta1),
        second=_second_moment(config),
        tau=config.tau,
    )


def _second_moment(config: Config) -> SecondMoment:
    beta2 = config.beta2 if config.beta2 is not None else 0.0  # adagrad reads none
    rules: dict[str, SecondMoment] = {
        "adagrad": lambda v, square: v + square,
        "yogi": lambda v, square: v - (1.0 - beta2) * square * np.sign(v - square),
        "adam": lambda v, square: beta2 * v + (1.0 - beta2) * square,
    }
    return rules[config.optimizer]


def _moment_dtype(array: Array) -> np.dtype[np.float32] | np.dtype[np.float64]:
    return np.dtype(np.float64) if array.dtype == np.float64 else np.dtype(np.float32)
