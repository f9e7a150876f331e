"""`python -m benchmarks`: measure this package and graphile-worker 0.18.0 in turn."""

import json
import platform
import statistics
from pathlib import Path

import click

from benchmarks.lab import Lab, opened_lab
from benchmarks.measures import MEASURES, Measure

SIDES = ("ours", "node")


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often all is measured, in turn.")
@click.option("--only", multiple=True, metavar="TEXT", help="Measures whose name contains TEXT.")
@click.option("--store", type=Path, help="Write all figures to this file, as JSON.")
def main(rounds: int, only: tuple[str, ...], store: Path | None) -> None:
    """Measure this package and graphile-worker 0.18.0 in turn, and print medians and ratios."""
    chosen = [m for m in MEASURES if not only or any(text in m.name for text in only)]
    figures: dict[str, dict[str, list[float]]] = {
        measure.name: {side: [] for side in SIDES} for measure in chosen
    }
    with opened_lab() as lab:
        for round_number in range(1, rounds + 1):
            for measure in chosen:
                # Turn about, so that neither side always has the warmer machine.
                for side in SIDES if round_number % 2 else reversed(SIDES):
                    figures[measure.name][side].append(measure.run(lab, side))
                click.echo(f"round {round_number}: {measure.name}", err=True)
        click.echo(table(chosen, figures, _machine(lab)))
    if store is not None:
        store.write_text(json.dumps({"rounds": rounds, "figures": figures}, indent=1) + "\n")


def table(chosen: list[Measure], figures: dict[str, dict[str, list[float]]], about: str) -> str:
    """Medians and ratios, as Markdown."""
    lines = [
        about,
        "",
        "| measure | ours | Node 0.18.0 | ours / Node | from … to |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for measure in chosen:
        ours, node = (figures[measure.name][side] for side in SIDES)
        ratios = [a / b for a, b in zip(ours, node, strict=True)]
        lines.append(
            f"| {measure.name} ({measure.unit}) | {_number(statistics.median(ours))} "
            f"| {_number(statistics.median(node))} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} … {max(ratios):.2f} |"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _machine(lab: Lab) -> str:
    return f"Python {platform.python_version()}, {lab.about()}, {platform.machine()}."


if __name__ == "__main__":
    main()
