from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedloom.reporting.axes import Plane, Range, bins, thinned, tick_text, ticks


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(0.3, 10) == [2.5, 5.0, 7.5, 10.0]
    assert ticks(1, 3, 6, whole=True) == [1, 2, 3]


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [(2.5, 2.5, "2.5"), (5, 2.5, "5.0"), (0.75, 0.25, "0.75"), (1200, 200, "1,200"), (0, 1, "0"), (3e7, 1e7, "3e+07")],
)
def test_tick_labels_have_the_digits_their_step_needs(value: float, step: float, text: str) -> None:
    assert tick_text(value, step) == text


@given(some.lists(some.floats(allow_nan=True, allow_infinity=True, width=32), max_size=6))
def test_any_values_fit_between_ticks(values: list[float]) -> None:
    span = Range.of(values)
    framed = span.to_ticks()
    assert span.low < span.high
    for value in (span.low, span.high, *values):
        if math.isfinite(value):
            assert -1e-6 <= framed.share(value) <= 1 + 1e-6
    assert len(ticks(framed.low, framed.high)) <= 10


def test_one_share_is_shown_between_nothing_and_all() -> None:
    assert Range.of([0.8, 0.8]) == Range(low=0.0, high=1.0)


@pytest.mark.parametrize("value", [2.302585, -2.302585, 1e6, 0.9999999])
def test_rounding_noise_is_a_flat_line_and_a_little_more_is_not(value: float) -> None:
    """A loss that stands still in float32 differs in its last digits; no tick falls between those."""
    noisy = Range.of([value, value * (1 + 2e-7)])
    assert noisy.high - noisy.low > 0.1 * abs(value)
    for share in (1e-6, 2e-6, 1e-5):
        near = Range.of([value, value * (1 + share)]).to_ticks()
        assert near.low <= value <= near.high
        assert len(ticks(near.low, near.high)) >= 2


def test_zero_is_shown_where_it_is_near() -> None:
    assert Range.of([0.2, 2.0]).low == 0.0
    assert Range.of([1.5, 2.0]).low == 1.5


def test_a_plane_turns_y_upside_down() -> None:
    plane = Plane(
        width=100, height=50, left=10, right=10, top=5, bottom=5, x=Range(low=0, high=8), y=Range(low=0, high=4)
    )
    assert (plane.across(0), plane.across(8), plane.down(0), plane.down(4)) == (10, 90, 45, 5)


@given(some.integers(1, 500), some.integers(1, 60))
def test_bins_cover_everything_once(length: int, most: int) -> None:
    found = bins(length, most)
    assert len(found) <= most
    assert [index for start, stop in found for index in range(start, stop)] == list(range(length))


def test_thinning_keeps_every_peak() -> None:
    y = [0.0] * 5000
    y[3333], y[1234], y[42] = 9.0, -7.0, math.nan
    kept = thinned(list(range(5000)), y, most=100)
    assert (3333, 9.0) in kept and (1234, -7.0) in kept
    assert len(kept) <= 102
    assert kept == sorted(kept, key=lambda point: point[0])
