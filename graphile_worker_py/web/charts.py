"""Charts as SVG, made on the server, each with a table of its numbers.

Colours come from classes in the style sheet, because the content security policy allows no inline
style.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

WIDTH: Final = 520
WIDE: Final = 1040
"""Width of a chart that takes half of the page, and of one that takes all of it."""
HEIGHT: Final = 180
_LEFT: Final = 52
_BOTTOM: Final = 22
_TOP: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line of a chart.

    Attributes:
        name: Its name.
        style: The class that gives its colour: `ready`, `running`, `failed`, `completed` and so on.
        values: Its values, one for each label; None where there is none.
    """

    name: str
    style: str
    values: Sequence[float | None]


def lines(title: str, labels: Sequence[str], series: Sequence[Series], *, unit: str = "") -> Markup:
    """A chart of lines over time, with its legend and its table."""
    top = _nice(max((value for each in series for value in each.values if value), default=0))
    count = max(len(labels) - 1, 1)

    def x(at: int) -> float:
        return _LEFT + (WIDTH - _LEFT - 8) * at / count

    def y(value: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - value / top)

    parts = [_frame(title, top, unit, labels)]
    for each in series:
        points = [(x(at), y(value)) for at, value in enumerate(each.values) if value is not None]
        if len(points) == 1:
            parts.append(
                f'<circle class="dot {each.style}" cx="{points[0][0]:.1f}" '
                f'cy="{points[0][1]:.1f}" r="3"/>'
            )
        elif points:
            path = " L".join(f"{left:.1f},{height:.1f}" for left, height in points)
            base = HEIGHT - _BOTTOM
            parts.append(
                f'<path class="area {each.style}" d="M{points[0][0]:.1f},{base} L{path} '
                f'L{points[-1][0]:.1f},{base} Z"/>'
                f'<path class="line {each.style}" d="M{path}"/>'
            )
    body = _svg(title, "".join(parts))
    return Markup('<figure class="chart">{}{}{}</figure>').format(
        body, _legend(series), _table(title, labels, series, unit)
    )


def bars(title: str, labels: Sequence[str], series: Sequence[Series], *, unit: str = "") -> Markup:
    """A chart of stacked bars over time, with its legend and its table."""
    totals = [sum(each.values[at] or 0 for each in series) for at in range(len(labels))]
    top = _nice(max(totals, default=0))
    step = (WIDE - _LEFT - 8) / max(len(labels), 1)
    parts = [_frame(title, top, unit, labels, width=WIDE)]
    for at in range(len(labels)):
        below = 0.0
        for each in series:
            value = each.values[at] or 0
            height = (HEIGHT - _TOP - _BOTTOM) * value / top
            if height > 0:
                parts.append(
                    f'<rect class="bar {each.style}" x="{_LEFT + step * at + step * 0.1:.1f}" '
                    f'y="{HEIGHT - _BOTTOM - below - height:.1f}" width="{step * 0.8:.1f}" '
                    f'height="{height:.1f}"><title>{escape(labels[at])}: {escape(each.name)} '
                    f"{shown(value)}{escape(unit)}</title></rect>"
                )
            below += height
    body = _svg(title, "".join(parts), width=WIDE)
    return Markup('<figure class="chart">{}{}{}</figure>').format(
        body, _legend(series), _table(title, labels, series, unit)
    )


def meter(share: float, style: str = "running") -> Markup:
    """A small horizontal bar that is filled by a share from 0 to 1."""
    width = 100 * min(max(share, 0), 1)
    return Markup(
        '<svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="6"/>'
        '<rect class="fill {}" width="{}" height="6"/></svg>'
    ).format(style, f"{width:.1f}")


def _svg(title: str, body: str, *, width: int = WIDTH) -> Markup:
    # The parts are made above, of numbers and of escaped texts.
    return Markup(  # noqa: S704
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'
    )


def _frame(title: str, top: float, unit: str, labels: Sequence[str], *, width: int = WIDTH) -> str:
    parts = [f"<title>{escape(title)}</title>"]
    for share in (0, 0.5, 1):
        height = _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - share)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{width - 8}" '
            f'y1="{height:.1f}" y2="{height:.1f}"/>'
            f'<text class="axis" x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">'
            f"{shown(top * share)}{escape(unit)}</text>"
        )
    if labels:
        ends = ((_LEFT, "start", labels[0]), (width - 8, "end", labels[-1]))
        for at, anchor, label in ends[: len(labels)]:
            parts.append(
                f'<text class="axis" x="{at}" y="{HEIGHT - 5}" text-anchor="{anchor}">'
                f"{escape(label)}</text>"
            )
    return "".join(parts)


def _legend(series: Sequence[Series]) -> Markup:
    items = Markup("").join(
        Markup('<li><span class="key {}" aria-hidden="true"></span>{}{}</li>').format(
            each.style, each.name, _last(each)
        )
        for each in series
    )
    return Markup('<figcaption><ul class="legend">{}</ul></figcaption>').format(items)


def _last(series: Series) -> Markup:
    known = [value for value in series.values if value is not None]
    return Markup(" <b>{}</b>").format(shown(known[-1])) if known else Markup("")


def _table(title: str, labels: Sequence[str], series: Sequence[Series], unit: str) -> Markup:
    # The newest rows, so that a page stays small.
    first = max(len(labels) - 30, 0)
    head = Markup("").join(
        Markup('<th scope="col">{}{}</th>').format(each.name, unit) for each in series
    )
    rows = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            labels[at],
            Markup("").join(
                Markup('<td class="number">{}</td>').format(
                    "–" if each.values[at] is None else shown(each.values[at] or 0)
                )
                for each in series
            ),
        )
        for at in range(first, len(labels))
    )
    return Markup(
        '<details class="twin"><summary>Numbers</summary><div class="scroll" tabindex="0" '
        'role="region" aria-label="{}"><table><thead><tr><th scope="col">Time</th>{}</tr></thead>'
        "<tbody>{}</tbody></table></div></details>"
    ).format(f"Numbers: {title}", head, rows)


def _nice(top: float) -> float:
    """A round number that is not below."""
    if top <= 0:
        return 1
    power = 1.0
    while power * 10 <= top:
        power *= 10
    while power > top:
        power /= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= top)


def shown(value: float) -> str:
    """A number in a few characters: `950`, `12.5 k`, `4.9 M`."""
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= limit:
            scaled = value / (limit if suffix != " k" else 1e3)
            return f"{scaled:.3g}{suffix}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
