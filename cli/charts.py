"""The page's pictures as inline SVG: lengths across in per cent, so that they fit any width while letters and lines keep their size.

What stands beside a plot (ticks, axis titles) lies outside of its box, in the margins that the page's style leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from modelcodec.cli.messages import printable, size

PLOT_HEIGHT = 280
SPARK_WIDTH, SPARK_HEIGHT = 120, 24
"""As in the page's style."""


def text(value: str) -> str:
    """Untrusted text for the page: what could steer a display is shown as its code, what HTML would read is escaped."""
    return escape(printable(value))


@dataclass(frozen=True, slots=True)
class Point:
    """A tensor in the rate-distortion plane; `weight` from 0 to 1 is its share of the largest."""

    name: str
    bits: float
    snr_db: float
    weight: float


@dataclass(frozen=True, slots=True)
class _Axis:
    """From low to high with a tick every `step`."""

    low: float
    high: float
    step: float

    @classmethod
    def over(cls, values: Sequence[float], n_ticks: int) -> _Axis:
        """The least axis with round ends over zero and all values."""
        low, high = min(0.0, *values), max(0.0, *values)
        rough = (high - low) / n_ticks or 1.0
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
        return cls(math.floor(low / step) * step, (math.floor(high / step) + 1) * step, step)

    def ticks(self) -> list[float]:
        return [self.low + k * self.step for k in range(round((self.high - self.low) / self.step) + 1)]

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def _svg(kind: str, height: int, title: str, description: str, body: str) -> str:
    label = f'<title id="{kind}-t">{title}</title><desc id="{kind}-d">{description}</desc>'
    return f'<svg class="plot {kind}" role="img" aria-labelledby="{kind}-t" aria-describedby="{kind}-d" width="100%" height="{height}">{label}{body}</svg>'


def _frame(x: _Axis, y: _Axis, x_title: str, y_title: str) -> str:
    """Grid lines, ticks and titles."""
    parts = []
    for tick in y.ticks():
        at = f"{PLOT_HEIGHT * (1 - y.share(tick)):.1f}"
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/><text class="y" x="-8" y="{at}" dy=".33em">{_number(tick)}</text>')
    for tick in x.ticks():
        at = f"{100 * x.share(tick):.2f}%"
        parts.append(f'<line class="tick" x1="{at}" x2="{at}" y1="{PLOT_HEIGHT}" y2="{PLOT_HEIGHT + 5}"/>')
        parts.append(f'<text class="x" x="{at}" y="{PLOT_HEIGHT + 20}">{_number(tick)}</text>')
    parts.append(f'<text class="x name" x="50%" y="{PLOT_HEIGHT + 40}">{x_title}</text><text class="name" x="-36" y="-14">{y_title}</text>')
    return "".join(parts)


def _number(tick: float) -> str:
    return f"{tick:g}".replace("-", "−")


def rate_distortion(points: Sequence[Point], whole: Point, db_per_bit: float) -> str:
    """Bits a weight against SNR: a circle a tensor, a diamond for all, and the line that independent Gaussian weights cannot get above."""
    x = _Axis.over([p.bits for p in (*points, whole)], 6)
    y = _Axis.over([p.snr_db for p in (*points, whole)], 5)
    top = min(x.high, y.high / db_per_bit)
    bound = f'<line class="bound" x1="{100 * x.share(0):.2f}%" y1="{_down(y, 0)}" x2="{100 * x.share(top):.2f}%" y2="{_down(y, top * db_per_bit)}"/>'
    at = x.share(top)
    place = ' dx="24"' if at < 0.3 else ' class="end"' if at > 0.8 else ' class="middle"'
    label = f'<g class="bounding"><text{place} x="{100 * at:.2f}%" y="{_down(y, top * db_per_bit)}" dy="-8">Gaussian bound</text></g>'
    # The largest first, so that none hides a smaller one.
    circles = "".join(_circle(p, x, y) for p in sorted(points, key=lambda p: (-p.weight, p.name)))
    diamond = f'<path class="whole" d="M0-8L8 0 0 8-8 0Z"><title>{_place(whole)}</title></path><text class="label name" x="14" y="4">{text(whole.name)}</text>'
    mark = f'<svg class="at" x="{100 * x.share(whole.bits):.2f}%" y="{_down(y, whole.snr_db)}">{diamond}</svg>'
    described = f"{len(points)} tensors; all together lie at {_place(whole)}."
    body = _frame(x, y, "bits a weight", "SNR, dB") + bound + label + circles + mark
    return _svg("rate-distortion", PLOT_HEIGHT, "Bits a weight against signal-to-noise ratio", described, body)


def _down(y: _Axis, value: float) -> str:
    return f"{PLOT_HEIGHT * (1 - y.share(value)):.1f}"


def _place(p: Point) -> str:
    return f"{p.bits:.3f} bits, {p.snr_db:.2f} dB"


def _circle(p: Point, x: _Axis, y: _Axis) -> str:
    radius = 3 + 7 * math.sqrt(p.weight)
    return f'<circle cx="{100 * x.share(p.bits):.2f}%" cy="{_down(y, p.snr_db)}" r="{radius:.1f}"><title>{text(p.name)}: {_place(p)}</title></circle>'


def histogram(counts: Sequence[int], reach: float) -> str:
    """Errors of all tensors in units of their RMSE, beside a normal distribution of the same width."""
    n = sum(counts)
    shares = [count / n for count in counts]
    width = 2 * reach / len(counts)
    centres = [-reach + (k + 0.5) * width for k in range(len(counts))]
    normal = [width * math.exp(-c * c / 2) / math.sqrt(2 * math.pi) for c in centres]
    x, y = _Axis(-reach, reach, 1.0), _Axis.over([100 * max(*shares, *normal)], 4)
    bars = "".join(
        f'<rect x="{100 * k / len(counts):.2f}%" width="{100 / len(counts):.2f}%" y="{_down(y, 100 * s)}" height="{PLOT_HEIGHT * y.share(100 * s):.1f}"/>'
        for k, s in enumerate(shares)
    )
    ends = [(f"{100 * x.share(c):.2f}%", _down(y, 100 * s)) for c, s in zip(centres, normal, strict=True)]
    curve = "".join(f'<line class="normal" x1="{a}" y1="{b}" x2="{c}" y2="{d}"/>' for (a, b), (c, d) in pairwise(ends))
    below = 100 * sum(share for share, centre in zip(shares, centres, strict=True) if abs(centre) < 1)
    described = f"{below:.1f} % of the errors drawn are below the RMSE of their tensor; of normal errors it would be 68 %."
    return _svg("histogram", PLOT_HEIGHT, "Distribution of the errors", described, _frame(x, y, "error / RMSE of its tensor", "% of weights") + bars + curve)


def spark(counts: Sequence[int]) -> str:
    """A tensor's histogram, two bins in one, without axes: small enough for a cell."""
    pairs = [a + b for a, b in zip(counts[::2], counts[1::2], strict=True)]
    most, step = max(*pairs, 1), SPARK_WIDTH // len(pairs)
    path = "".join(f"V{SPARK_HEIGHT - round(SPARK_HEIGHT * pair / most)}h{step}" for pair in pairs)
    return f'<svg class="spark" aria-hidden="true"><path d="M0 {SPARK_HEIGHT}{path}V{SPARK_HEIGHT}"/></svg>'


def stack(parts: Sequence[tuple[str, int, str]], whole: int) -> str:
    """One bar of parts (class, bytes, name) in shares of `whole`."""
    at, out = 0.0, ""
    for kind, n_bytes, name in parts:
        share = 100 * n_bytes / whole if whole else 0.0
        out += f'<rect class="{kind}" x="{at:.2f}%" width="{share:.2f}%" height="100%"><title>{text(name)}: {size(n_bytes)}</title></rect>'
        at += share
    return f'<svg class="stack" width="100%" height="22" aria-hidden="true">{out}</svg>'
