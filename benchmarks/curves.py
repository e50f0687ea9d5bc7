"""Curves of quality against size as an SVG file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 210, 44, 48
COLOURS = ("#0b62a4", "#c1440e", "#5b7f18", "#7a4fa3", "#8a6d00", "#00796b", "#616161")
STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-size:15px}.grid{stroke:#ddd}.end{text-anchor:end}.middle{text-anchor:middle}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}}"
)


@dataclass(frozen=True, slots=True)
class Point:
    size: float
    value: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one kind, joined by a line unless they are `alone`."""

    name: str
    points: Sequence[Point]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """What goes up or along: its name, and whether in powers of ten."""

    name: str
    logarithmic: bool = False

    def of(self, number: float) -> float:
        return math.log10(number) if self.logarithmic else number

    def ticks(self, axis: _Axis) -> list[tuple[float, float]]:
        """Places on the axis, and the round numbers that they stand for."""
        return [(math.log10(value), value) for value in _decades(axis)] if self.logarithmic else [(value, value) for value in axis.rounds()]


BITS = Scale("bits a weight")


@dataclass(frozen=True, slots=True)
class _Axis:
    """Numbers from low to high, in the scale that is drawn, along so many pixels from `start` on."""

    low: float
    high: float
    start: float
    length: float

    @classmethod
    def over(cls, numbers: Sequence[float], start: float, length: float) -> _Axis:
        margin = 0.05 * (max(numbers) - min(numbers) or 1.0)
        return cls(min(numbers) - margin, max(numbers) + margin, start, length)

    def at(self, number: float) -> float:
        return self.start + self.length * (number - self.low) / (self.high - self.low)

    def rounds(self) -> list[float]:
        """Round numbers, nine at most."""
        rough = (self.high - self.low) / 9
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        return [round(step * k, 9) for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def drawn(title: str, up: Scale, curves: Sequence[Curve], along: Scale = BITS) -> str:
    """Each curve in a colour of its own, its name beside the picture, labels beside its points."""
    points = [point for curve in curves for point in curve.points]
    x = _Axis.over([along.of(point.size) for point in points], LEFT, WIDTH - LEFT - RIGHT)
    y = _Axis.over([up.of(point.value) for point in points], HEIGHT - BOTTOM, TOP + BOTTOM - HEIGHT)
    body = [f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>', *_grid(x, y, along, up)]
    for place, curve in enumerate(curves):
        colour, legend = COLOURS[place % len(COLOURS)], TOP + 12 + 20 * place
        body.append(f'<circle cx="{WIDTH - RIGHT + 24}" cy="{legend - 4}" r="5" fill="{colour}"/>')
        body.append(f'<text x="{WIDTH - RIGHT + 36}" y="{legend}">{escape(curve.name)}</text>')
        body += _curve(curve, colour, [(x.at(along.of(point.size)), y.at(up.of(point.value))) for point in curve.points])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>{''.join(body)}</svg>\n"
    )


def _curve(curve: Curve, colour: str, places: Sequence[tuple[float, float]]) -> Iterable[str]:
    if not curve.alone:
        line = " ".join(f"{across:.1f},{down:.1f}" for across, down in sorted(places))
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    for point, (across, down) in zip(curve.points, places, strict=True):
        told = escape(f"{point.label or curve.name}: {point.size:,.4g}, {point.value:.4g}")
        yield f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"><title>{told}</title></circle>'
        if point.label:
            yield f'<text x="{across + 6:.1f}" y="{down - 5:.1f}">{escape(point.label)}</text>'


def _grid(x: _Axis, y: _Axis, along: Scale, up: Scale) -> Iterable[str]:
    """Lines at round numbers, with their values, and the names of the axes."""
    for place, value in along.ticks(x):
        at = f"{x.at(place):.1f}"
        yield f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield f'<text class="middle" x="{at}" y="{HEIGHT - BOTTOM + 18}">{value:g}</text>'
    for place, value in up.ticks(y):
        at = f"{y.at(place):.1f}"
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'
        yield f'<text class="end" x="{LEFT - 8}" y="{float(at) + 4:.1f}">{value:g}</text>'
    yield f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 10}">{escape(along.name)}</text>'
    yield f'<text x="8" y="{TOP - 8}">{escape(up.name)}</text>'


def _decades(axis: _Axis) -> list[float]:
    """1, 2 and 5 of each power of ten."""
    powers = range(math.floor(axis.low), math.ceil(axis.high) + 1)
    return [factor * 10.0**power for power in powers for factor in (1, 2, 5) if axis.low <= math.log10(factor * 10.0**power) <= axis.high]
