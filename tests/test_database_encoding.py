"""Databases in other encodings than UTF-8 hold jobs all the same."""

from collections.abc import Iterator

import psycopg
import psycopg_pool
import pytest

from graphile_worker_py import JobSpec, SyncWorkerUtils
from tests.support.server import CREATE_LATIN1, Server


@pytest.fixture
def latin_dsn(server: Server) -> Iterator[str]:
    """A database in LATIN1."""
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as conn:
        conn.execute(CREATE_LATIN1)
        yield server.dsn("latin")
        conn.execute("drop database latin")


def test_text_of_jobs_comes_back_as_it_was(latin_dsn: str) -> None:
    with SyncWorkerUtils(latin_dsn) as utils:
        job = utils.add_job("ä", {"ö": "ü"}, queue_name="ß")
        jobs = utils.add_jobs([JobSpec("é", {"n": "è"}), JobSpec("à", {"n": "â"})])
        assert (job.task_identifier, job.payload) == ("ä", {"ö": "ü"})
        assert [(each.task_identifier, each.payload["n"]) for each in jobs] == [
            ("é", "è"),
            ("à", "â"),
        ]
        with pytest.raises(psycopg.errors.UntranslatableCharacter):
            utils.add_job("a", {"n": "😀"})


def test_text_comes_back_on_a_callers_connections_in_that_encoding(latin_dsn: str) -> None:
    with psycopg_pool.ConnectionPool(latin_dsn, open=False) as pool:
        with SyncWorkerUtils(pool) as utils:
            jobs = utils.add_jobs([JobSpec("é", {"n": "è"}), JobSpec("à", {"n": "â"})])
            (first, _) = sorted(utils.list_jobs(), key=lambda job: job.task_identifier)
        with pool.connection() as conn:
            assert conn.info.encoding == "iso8859-1"
    assert [each.payload["n"] for each in jobs] == ["è", "â"]
    assert (first.task_identifier, first.payload_json) == ("à", '{"n":"â"}'.encode())
