"""Charts as SVG, made on the server, each with a table of its numbers.

Colours come from classes in the style sheet, because the content security policy allows no inline
style.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

WIDTH: Final = 1000
HEIGHT: Final = 150
"""Units of the drawing, which is stretched to the room that it gets. Texts are outside of it."""


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
    parts = []
    for each in series:
        points = [
            (WIDTH * at / count, HEIGHT * (1 - value / top))
            for at, value in enumerate(each.values)
            if value is not None
        ]
        if not points:
            continue
        style = each.style
        if len(points) == 1:
            # A line without length has a round end on each side: a dot.
            points *= 2
            style += " dot"
        path = " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(
            f'<path class="area {each.style}" d="M{points[0][0]:.1f},{HEIGHT} L{path} '
            f'L{points[-1][0]:.1f},{HEIGHT} Z"/><path class="line {style}" d="M{path}"/>'
        )
    return _figure(title, labels, series, unit=unit, top=top, drawing="".join(parts))


def bars(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    unit: str = "",
    over: str = "Time",
) -> Markup:
    """A chart of stacked bars over time, or whatever `over` says, with its legend and its table."""
    totals = [sum(each.values[at] or 0 for each in series) for at in range(len(labels))]
    top = _nice(max(totals, default=0))
    step = WIDTH / max(len(labels), 1)
    parts = []
    for at in range(len(labels)):
        below = 0.0
        for each in series:
            value = each.values[at] or 0
            height = HEIGHT * value / top
            if height > 0:
                parts.append(
                    f'<rect class="bar {each.style}" x="{step * at + step * 0.1:.1f}" '
                    f'y="{HEIGHT - below - height:.1f}" width="{step * 0.8:.1f}" '
                    f'height="{height:.1f}"><title>{escape(labels[at])}: {escape(each.name)} '
                    f"{shown(value)}{escape(unit)}</title></rect>"
                )
            below += height
    return _figure(title, labels, series, unit=unit, top=top, drawing="".join(parts), over=over)


def meter(share: float, style: str = "running") -> Markup:
    """A small horizontal bar that is filled by a share from 0 to 1."""
    width = 100 * min(max(share, 0), 1)
    return Markup(
        '<svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="6"/>'
        '<rect class="fill {}" width="{}" height="6"/></svg>'
    ).format(style, f"{width:.1f}")


def spark(title: str, values: Sequence[int]) -> Markup:
    """Small bars without axes, for a cell of a table."""
    top = max(values, default=0) or 1
    bars = "".join(
        f'<rect class="bar" x="{4 * at}" y="{20 - 20 * value / top:.1f}" width="3" '
        f'height="{20 * value / top:.1f}"/>'
        for at, value in enumerate(values)
    )
    return Markup(
        '<svg class="spark failed" viewBox="0 0 {} 20" preserveAspectRatio="none" role="img" '
        'aria-label="{}"><title>{}</title>{}</svg>'
    ).format(4 * len(values), title, title, Markup(bars))  # noqa: S704  # made of numbers


def _figure(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    unit: str,
    top: float,
    drawing: str,
    over: str = "Time",
) -> Markup:
    """The drawing with its axes, legend and table."""
    heights = Markup("").join(
        Markup("<span>{}{}</span>").format(shown(top * share), unit) for share in (1, 0.5, 0)
    )
    ends = [labels[0], labels[-1]] if len(labels) > 1 else labels
    lines = "".join(
        f'<path class="grid" d="M0,{HEIGHT * share:.0f} H{WIDTH}"/>' for share in (0, 0.5, 1)
    )
    # The parts were made above, of numbers and of escaped texts.
    svg = Markup(  # noqa: S704
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{lines}{drawing}</svg>'
    )
    return Markup(
        '<figure class="chart"><div class="plot"><div class="heights" aria-hidden="true">{}</div>{}'
        '<div class="ends" aria-hidden="true">{}</div></div>{}{}</figure>'
    ).format(
        heights,
        svg,
        Markup("").join(Markup("<span>{}</span>").format(each) for each in ends),
        _legend(series, unit, is_over_time=over == "Time"),
        _table(title, labels, series, unit, over),
    )


def _legend(series: Sequence[Series], unit: str, *, is_over_time: bool) -> Markup:
    items = Markup("").join(
        Markup('<li><span class="key {}" aria-hidden="true"></span>{}{}</li>').format(
            each.style, each.name, _last(each, unit) if is_over_time else ""
        )
        for each in series
    )
    return Markup('<figcaption><ul class="legend">{}</ul></figcaption>').format(items)


def _last(series: Series, unit: str) -> Markup:
    known = [value for value in series.values if value is not None]
    return Markup(" <b>{}{}</b>").format(shown(known[-1]), unit) if known else Markup("")


def _table(
    title: str, labels: Sequence[str], series: Sequence[Series], unit: str, over: str
) -> Markup:
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
        'role="region" aria-label="{}"><table><thead><tr><th scope="col">{}</th>{}</tr></thead>'
        "<tbody>{}</tbody></table></div></details>"
    ).format(f"Numbers: {title}", over, head, rows)


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
