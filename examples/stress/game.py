"""A game under load: five kinds of tasks with durations, priorities and pools of their own.

Run it with `python game.py --jobs 5000 --workers 20 --duration 30`. It shows live rates, and at the
end how long the jobs of each kind have waited and run.
"""

import argparse
import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from graphile_worker_py import JobSpec, Pool, Runner, run_migrations, task
from graphile_worker_py.clock import utc_now
from graphile_worker_py.events import JobError, JobStart, JobSuccess

UNITS = 20
CHUNK = 500


@task("battle/attack", max_attempts=5)
async def attack(payload: dict[str, int]) -> None:
    """Is quick, and comes first; sometimes it misses and is tried again."""
    await asyncio.sleep(0.005)
    if payload["luck"] == 0:
        raise RuntimeError("missed")


@task("battle/heal")
async def heal(_payload: dict[str, int]) -> None:
    """Is quick, and comes second."""
    await asyncio.sleep(0.02)


@task("world/gather")
async def gather(_payload: dict[str, int]) -> None:
    """Takes a moment."""
    await asyncio.sleep(0.05)


@task("world/build")
def build(_payload: dict[str, int]) -> None:
    """Is a plain function, so it runs in a thread."""
    time.sleep(0.2)


@task("train")
async def train(_payload: dict[str, int]) -> None:
    """Is slow. A unit that waits for its training is not trained twice: its job key is the same."""
    await asyncio.sleep(0.3)


KINDS = ("battle/attack", "battle/heal", "world/gather", "world/build", "train")
SHARES = (60, 20, 12, 5, 3)
PRIORITIES = dict(zip(KINDS, (0, 1, 5, 5, 10), strict=True))


def orders(count: int) -> Iterator[JobSpec]:
    """What the players ask for."""
    for kind in random.choices(KINDS, SHARES, k=count):
        unit = random.randrange(UNITS)
        yield JobSpec(
            kind,
            {"unit": unit, "luck": random.randrange(50)},
            priority=PRIORITIES[kind],
            job_key=f"train {unit}" if kind == "train" else None,
        )


@dataclass
class Board:
    """What happened so far."""

    asked: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    waits: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    runs: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def listen(self, runner: Runner) -> None:
        """Note what the events of a runner say."""
        runner.events.subscribe(JobStart, self._started)
        runner.events.subscribe(JobSuccess, self._succeeded)
        runner.events.subscribe(JobError, self._failed)

    def _started(self, event: JobStart) -> None:
        waited = (utc_now() - event.job.run_at).total_seconds()
        self.waits[event.job.task_identifier].append(waited)

    def _succeeded(self, event: JobSuccess) -> None:
        self.done[event.job.task_identifier] += 1
        self.runs[event.job.task_identifier].append(event.duration)

    def _failed(self, _event: JobError) -> None:
        self.failed += 1

    def summary(self, seconds: float) -> Iterator[str]:
        """A line for each kind, and one for all."""
        yield f"{'task':<14} {'done':>6} {'wait p50':>10} {'p99':>9} {'run p50':>9} {'p99':>9}"
        for kind in KINDS:
            waits, runs = self.waits[kind], self.runs[kind]
            yield (
                f"{kind:<14} {self.done[kind]:>6} {share(waits, 0.5):>7.0f} ms "
                f"{share(waits, 0.99):>6.0f} ms {share(runs, 0.5):>6.0f} ms "
                f"{share(runs, 0.99):>6.0f} ms"
            )
        yield f"training: {self.asked['train']} asked for, {self.done['train']} done"
        total = self.done.total()
        yield f"{total} jobs in {seconds:.1f} s, {total / seconds:.0f}/s, {self.failed} retried"


def share(seconds: Sequence[float], part: float) -> float:
    """The milliseconds that this part of the values does not exceed; 0 if there are none."""
    ordered = sorted(seconds)
    return 1000 * ordered[min(int(part * len(ordered)), len(ordered) - 1)] if ordered else 0.0


async def play(runner: Runner, board: Board, *, jobs: int, duration: float) -> None:
    """Ask for jobs, all at once or spread over some seconds, and wait until none is left."""
    began, added = time.monotonic(), 0
    while added < jobs:
        chunk = list(orders(min(CHUNK, jobs - added)))
        board.asked.update(spec.identifier for spec in chunk)
        await runner.add_jobs(chunk)
        added += len(chunk)
        await asyncio.sleep(max(0.0, began + duration * added / jobs - time.monotonic()))


async def show(board: Board, interval: float) -> None:
    """Print the rates of the last moment, again and again."""
    before: Counter[str] = Counter()
    while True:
        await asyncio.sleep(interval)
        rates = {kind: (board.done[kind] - before[kind]) / interval for kind in KINDS}
        before = board.done.copy()
        told = "  ".join(f"{kind} {rate:.0f}/s" for kind, rate in rates.items())
        print(f"{board.done.total():>7} done  {told}", flush=True)


async def finished(board: Board) -> None:
    """Wait until nothing has been done for a moment: retries come later, and are not waited for."""
    before = -1
    while board.done.total() != before:
        before = board.done.total()
        await asyncio.sleep(1)


async def main(args: argparse.Namespace) -> None:
    """Play, and print a summary."""
    await run_migrations()
    board = Board()
    pools = {
        "battle": Pool(tasks=["battle/*"], concurrent_jobs=args.workers),
        "training": Pool(tasks=["train"], concurrent_jobs=max(1, args.workers // 4)),
        "world": Pool(concurrent_jobs=max(1, args.workers // 2)),
    }
    began = time.monotonic()
    async with Runner(tasks=[attack, heal, gather, build, train], pools=pools) as runner:
        board.listen(runner)
        async with asyncio.TaskGroup() as group:
            shown = group.create_task(show(board, args.interval))
            await play(runner, board, jobs=args.jobs, duration=args.duration)
            await finished(board)
            shown.cancel()
        seconds = time.monotonic() - began
    print("\n".join(board.summary(seconds)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000, help="how many jobs are added")
    parser.add_argument("--workers", type=int, default=20, help="jobs at a time in battle")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds to add them in")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two rates")
    asyncio.run(main(parser.parse_args()))
