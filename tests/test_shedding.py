"""A worker pool that has too much to do fetches no jobs, and says so."""

import asyncio
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from graphile_worker_py import ConfigurationError, Runner, Shedding
from graphile_worker_py.config import read_settings, runner_values
from tests.support.eventually import eventually
from tests.support.pages import blocks_of
from tests.support.running import Jobs

PAGE = Path(__file__).parent.parent / "docs" / "limits.md"


class Shop:
    """Tasks, and which of their jobs ran."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        self.begun = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def mail(self, payload: Any) -> None:
        """Run at once, or when it is let go."""
        self.begun += 1
        async with asyncio.timeout(10):
            await self.hold.wait()
        self.ran.append(payload)

    async def block(self, _payload: Any) -> None:
        """Keep the event loop from anything else."""
        time.sleep(0.4)  # noqa: ASYNC251  # that is the fault


def troubles(runner: Runner) -> str:
    """What the health says."""
    return "; ".join(runner.health().troubles)


async def test_a_pool_with_too_many_unrecorded_outcomes_fetches_no_more(dsn: str) -> None:
    shop = Shop()
    ids = Jobs(dsn).add_many(2, "mail")
    tasks, thresholds = {"mail": shop.mail}, Shedding(unrecorded=1)
    options: dict[str, Any] = {"concurrent_jobs": 3, "poll_interval": 0.1, "history": "none"}
    with psycopg.connect(dsn) as conn:
        shop.hold.clear()
        async with Runner(dsn, tasks=tasks, shedding=thresholds, **options) as runner:
            await eventually(lambda: shop.begun == 2)
            conn.execute(
                "select from graphile_worker._private_jobs where id = any (%s) for update", (ids,)
            )
            shop.hold.set()
            await eventually(lambda: "2 jobs have ended and are not recorded" in troubles(runner))
            late = Jobs(dsn).add("mail", "late")
            await asyncio.sleep(0.3)  # several polls
            assert Jobs(dsn).one(late)["locked_at"] is None
            conn.rollback()
            await eventually(lambda: "late" in shop.ran)
    assert Jobs(dsn).ids() == []


async def test_a_pool_whose_event_loop_is_late_pauses_and_goes_on(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop()
    tasks = {"block": shop.block, "mail": shop.mail}
    async with Runner(dsn, tasks=tasks, shedding=Shedding(loop_lag=0.1)) as runner:
        Jobs(dsn).add("block")
        await eventually(lambda: "shedding: the event loop is" in troubles(runner))
        health = runner.health()
        assert (health.live, health.ready) == (True, True)
        Jobs(dsn).add("mail", "after")
        await eventually(lambda: shop.ran == ["after"])
        assert troubles(runner) == ""
    assert caplog.text.count("Shedding load") == 1


async def test_a_pool_that_uses_too_much_memory_leaves_jobs_to_others(dsn: str) -> None:
    shop, other = Shop(), Shop()
    async with Runner(dsn, tasks={"mail": shop.mail}, shedding=Shedding(memory=1e-9)) as runner:
        await eventually(lambda: "of the memory is used" in troubles(runner))
        Jobs(dsn).add("mail", 1)
        async with Runner(dsn, tasks={"mail": other.mail}):
            await eventually(lambda: other.ran == [1])
    assert shop.ran == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "at least one threshold"),
        ({"loop_lag": 0}, "loop_lag of Shedding"),
        ({"memory": 1.5}, "above 0 and at most 1"),
        ({"memory": float("nan")}, "above 0 and at most 1"),
        ({"unrecorded": 0}, "at least 1"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Shedding(**given)


def test_a_file_and_the_environment_give_thresholds(tmp_path: Path) -> None:
    (block,) = [each for each in blocks_of(PAGE) if "[shedding]" in each.text]
    file = tmp_path / "graphile_worker.toml"
    file.write_text(block.text, encoding="utf-8")
    whole = Shedding(loop_lag=0.25, memory=0.9, unrecorded=5000)
    assert runner_values(read_settings({}, file=file, environment={}))["shedding"] == whole
    environment = {"GRAPHILE_WORKER_SHEDDING_MEMORY": "0.5"}
    found = runner_values(read_settings({}, directory=tmp_path / "none", environment=environment))
    assert found["shedding"] == Shedding(memory=0.5)
    assert "shedding" not in runner_values(
        read_settings({}, directory=tmp_path / "none", environment={})
    )
    file.write_text("[shedding]\nmemory = 90\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"shedding\.memory must be .* at most 1, not 90"):
        read_settings({}, file=file, environment={})
