"""Draws how long things took as an SVG, so that a proof can show more than a percentile.

Called by the proofs (`make prove-...`). Cumulative: a curve says which share was done after how long.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 320, 56, 36
_COLOURS = ("#1f6fb4", "#d1493f", "#2e8b57", "#8a5fb0", "#b8860b", "#555555")


def percentile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that `share` (0 to 1) of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(len(ordered) * share)) - 1]


def cumulative(path: Path, title: str, series: Mapping[str, Sequence[float]], limit: float) -> None:
    """Draw a curve for each series of seconds, and a line at `limit`."""
    bottom = _TOP + _HEIGHT
    longest = max(limit * 1.1, *(max(values) for values in series.values()))

    def x(seconds: float) -> float:
        return round(_LEFT + seconds / longest * _WIDTH, 1)

    def y(share: float) -> float:
        return round(_TOP + (1 - share) * _HEIGHT, 1)

    parts = [f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>']
    for tenth in range(0, 11, 2):
        parts += [
            f'<path d="M{_LEFT} {y(tenth / 10)}h{_WIDTH}" stroke="#ddd"/>',
            f'<text x="{_LEFT - 8}" y="{y(tenth / 10) + 4}" text-anchor="end">{tenth * 10} %</text>',
        ]
    step = 0.5 if longest < 6 else 5.0  # some ten marks either way
    for mark in range(int(longest / step) + 1):
        parts.append(
            f'<text x="{x(mark * step)}" y="{bottom + 18}" text-anchor="middle">{mark * step:g} s</text>'
        )
    parts.append(
        f'<path d="M{x(limit)} {_TOP}v{_HEIGHT}" stroke="#d1493f" stroke-dasharray="4"/>'
        f'<text x="{x(limit) - 4}" y="{bottom - 6}" text-anchor="end" fill="#d1493f">{limit:g} s</text>'
    )
    for number, (name, values) in enumerate(series.items()):
        colour, ordered = _COLOURS[number % len(_COLOURS)], sorted(values)
        points = f"M{x(0)} {y(0)}" + "".join(
            f"H{x(value)}V{y((at + 1) / len(ordered))}" for at, value in enumerate(ordered)
        )
        text = f"{name}: 95 % within {percentile(values, 0.95):.2f} s"
        place = f'x="{_LEFT + _WIDTH - 8}" y="{_TOP + 120 + 16 * number}" text-anchor="end"'
        parts += [
            f'<path d="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>',
            f'<text {place} fill="{colour}">{escape(text)}</text>',
        ]
    body = "\n".join(parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 16} {_TOP + _HEIGHT + 32}" '
        f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        f"{body}\n</svg>\n"
    )
