"""`python -m benchmarks`: measure this package and others in turn."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from benchmarks.environments import UnavailableError
from benchmarks.lab import Lab, opened_lab
from benchmarks.measure import Measure
from benchmarks.measures import MEASURES
from benchmarks.plots import pictures
from benchmarks.report import Run, inserted, page, text

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
Figures = dict[str, dict[str, list[dict[str, Any]]]]


@click.command()
@click.option(
    "--rounds",
    default=5,
    show_default=True,
    help="Number of rounds; each measures all sides in turn.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="TEXT",
    help="Measures whose name contains TEXT; without it, all that do not take long.",
)
@click.option("--side", "sides", multiple=True, metavar="NAME", help="Sides to measure (all).")
@click.option(
    "--scale", default=1.0, show_default=True, help="Multiply numbers of jobs, for a trial."
)
@click.option(
    "--held",
    default=10.0,
    show_default=True,
    help="Seconds to measure with an open transaction; minutes show more.",
)
@click.option("--list", "listing", is_flag=True, help="List the measures and their sides.")
@click.option(
    "--store",
    type=Path,
    help="Write all figures to this file, as JSON; those of other measures in it stay.",
)
@click.option("--svg", type=Path, metavar="FOLDER", help="Write plots into this folder.")
@click.option(
    "--render",
    type=Path,
    metavar="FILE",
    help="Measure nothing: put a stored file's figures into docs/performance.md.",
)
def main(
    rounds: int,
    only: tuple[str, ...],
    sides: tuple[str, ...],
    scale: float,
    held: float,
    listing: bool,
    store: Path | None,
    svg: Path | None,
    render: Path | None,
) -> None:
    """Measure this package, graphile-worker 0.18.0 and other queues in turn.

    Installs and starts all it needs: PostgreSQL, Node and the other packages, each in a separate
    environment. Prints medians and ratios.
    """
    if render is not None:
        render_page(Run(json.loads(render.read_text(encoding="utf-8"))), PAGE)
        return
    chosen = [
        measure
        for measure in MEASURES
        if any(text in measure.name for text in only) or not (only or measure.is_long)
    ]
    if listing:
        for measure in chosen:
            click.echo(f"{measure.name}: {', '.join(measure.sides)}")
        return
    with opened_lab(scale=scale, held=held) as lab:
        unknown = set(sides) - {*lab.sides, "pgbench"}
        if unknown:
            raise click.UsageError(f"there is no side {min(unknown)}")
        run = measured(lab, chosen, rounds, sides or (*lab.sides, "pgbench"))
    click.echo(text(run))
    if store is not None:
        stored = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}
        kept = merged(stored, run.stored)
        store.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if svg is not None:
        _write_pictures(run, svg)


def measured(lab: Lab, measures: list[Measure], rounds: int, sides: tuple[str, ...]) -> Run:
    """Measure all sides in turn. If one can't be measured, record the reason."""
    machine, date = lab.machine(), datetime.now(UTC).date().isoformat()
    unavailable: dict[str, str] = {}
    about: dict[str, dict[str, Any]] = {}
    for name in (each for each in lab.sides if each in sides):
        side = lab.sides[name]
        if any(name in measure.sides for measure in measures):
            try:
                about[name] = {"title": side.title, "about": side.about(), "best": side.best}
            except UnavailableError as error:
                unavailable[side.title] = str(error)
    present = [*about, *(name for name in ("pgbench",) if name in sides)]
    figures: Figures = {
        measure.name: {name: [] for name in measure.sides if name in present}
        for measure in measures
    }
    for round_number in range(1, rounds + 1):
        for measure in measures:
            turn = list(figures[measure.name])
            # In alternating order, so that no side always has the warmer machine.
            for name in turn if round_number % 2 else reversed(turn):
                try:
                    figures[measure.name][name].append(measure.run(lab, name))
                except UnavailableError as error:
                    unavailable[name] = str(error)
            click.echo(f"round {round_number}: {measure.name}", err=True)
    return Run(
        {
            "measured": {key: {"date": date, "machine": machine} for key in figures},
            "scale": lab.scale,
            "held": lab.held,
            "sides": about,
            "unavailable": unavailable,
            "figures": figures,
        }
    )


def merged(stored: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """A stored run with the measures of another one in place of its own."""
    both = {**stored, **run}
    for key in ("sides", "unavailable", "figures", "measured"):
        both[key] = {**stored.get(key, {}), **run[key]}
    return both


def render_page(run: Run, file: Path) -> None:
    """Put the results into a page, and their plots into the folder with the page's name."""
    _write_pictures(run, file.with_suffix(""))
    found = file.read_text(encoding="utf-8")
    file.write_text(inserted(found, page(run, plots_beside(file, run))), encoding="utf-8")


def plots_beside(file: Path, run: Run) -> list[tuple[str, str]]:
    """The plots of a page: description, and path relative to the page."""
    return [
        (description, f"{file.stem}/{name}") for name, (description, _) in pictures(run).items()
    ]


def _write_pictures(run: Run, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (_, svg) in pictures(run).items():
        (folder / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
