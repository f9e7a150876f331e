"""Forms of the pages that look after the tables, and what the audit log keeps of them."""

from typing import Any

import httpx
import pytest

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.web import Access, create_app
from tests.support.jobs import Jobs
from tests.web.serving import client_of, served

HTML = {"accept": "text/html"}


async def audit(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    """The rows of the audit log, the newest first."""
    rows: list[dict[str, Any]] = (await client.get("/api/v1/audit")).json()["items"]
    return rows


async def test_a_cleanup_counts_first_and_leaves_jobs_that_failed_lately(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    ids = stored.add_many(3, "a")
    stored.exhaust(*ids)
    stored.query(
        "update graphile_worker._private_jobs set run_at = now() - interval '8 days', "
        "updated_at = now() - interval '8 days' where id = %s",
        ids[0],
    )
    page = (await client.get("/maintenance", headers=HTML)).text
    assert '<option value="7d">more than 7 days ago</option>' in page
    form = {"task": "DELETE_PERMAFAILED_JOBS", "older_than": "7d"}
    asked = await client.post("/maintenance/cleanup", data=form, headers=HTML)
    assert "that failed more than 7d ago: 1 row." in asked.text
    assert len(stored.ids()) == 3
    done = await client.post("/maintenance/cleanup", data={**form, "confirmed": "1"})
    assert (done.status_code, done.headers["location"]) == (
        303,
        "/maintenance?done=cleanup&n=1",
    )
    assert stored.ids() == ids[1:]
    (row,) = await audit(client)
    assert (row["action"], row["count"]) == ("cleanup", 1)
    assert row["details"] == {"task": "DELETE_PERMAFAILED_JOBS", "older_than": "7d"}
    refused = await client.post("/maintenance/cleanup", data={**form, "older_than": "soon"})
    assert (refused.status_code, "12h, 3d" in refused.text) == (422, True)


async def test_the_audit_log_forgets_what_is_older_than_its_retention(
    dsn: str, stored: Jobs
) -> None:
    with pytest.raises(ConfigurationError, match="audit_retention must be a duration such as 12h"):
        create_app(dsn, audit_retention="soon")
    app = create_app(dsn, authorize=lambda _request: Access.admin("anna"), audit_retention="90m")
    ids = stored.add_many(3, "a")
    async with served(app) as url, client_of(url) as client:
        for hours, job_id in ((2, ids[0]), (1, ids[1]), (0, ids[2])):
            await client.post(f"/api/v1/jobs/{job_id}/fail")
            stored.query(
                "update graphile_worker_py.audit set at = at - %s * interval '1 hour' "
                "where job_id = %s",
                hours,
                job_id,
            )
        assert [row["job_id"] for row in await audit(client)] == [ids[2], ids[1]]


async def test_the_filter_suggests_states_tasks_and_queues(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    stored.add("<b> mail", queue_name="one queue")
    page = (await client.get("/jobs", params={"q": "flag:x"}, headers=HTML)).text
    for suggested in (
        "flag:x state:failed",
        "flag:x task:&#34;&lt;b&gt; mail&#34;",
        "flag:x queue:&#34;one queue&#34;",
    ):
        assert f'<option value="{suggested}"></option>' in page, page


async def test_the_jobs_of_one_error_of_a_task_are_retried(
    client: httpx.AsyncClient, stored: Jobs
) -> None:
    ids = stored.add_many(2, "a")
    stored.exhaust(*ids)
    stored.query(
        "update graphile_worker._private_jobs set last_error = 'timeout of ' || id where id = %s",
        ids[0],
    )
    page = (await client.get("/tasks/a", headers=HTML)).text
    assert 'name="q" value="state:failed task:a error:&#34;timeout of&#34;"' in page, page
    form = {"action": "retry", "all": "1", "q": 'state:failed task:a error:"timeout of"'}
    assert "Retry 1 job?" in (await client.post("/jobs/action", data=form, headers=HTML)).text
    await client.post("/jobs/action", data={**form, "confirmed": "1"})
    assert [stored.one(each)["attempts"] for each in ids] == [0, 25]
