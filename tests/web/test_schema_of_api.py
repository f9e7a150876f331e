"""The API does what its OpenAPI document says, whatever is sent."""

import sys
from pathlib import Path

import httpx
import pytest

from tests.support.jobs import Jobs
from tests.support.processes import Processes
from tests.web.test_adding_once import start

pytestmark = pytest.mark.any_server


async def test_the_document_is_openapi_3_1_and_names_every_call(client: httpx.AsyncClient) -> None:
    document = (await client.get("/api/v1/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    for path in ("/jobs", "/jobs/bulk", "/jobs/actions", "/jobs/{job_id}/explain", "/events"):
        assert f"/api/v1{path}" in document["paths"]
    assert {"/livez", "/readyz", "/metrics"} <= set(document["paths"])


CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


# An answer of `…/outcome` takes up to a minute where its job waits: it is tried without jobs.
@pytest.mark.parametrize(
    ("jobs", "calls"),
    [
        (3, ["--exclude-path-regex", "/(events|outcome)$"]),
        (0, ["--include-path-regex", "/outcome$"]),
    ],
    ids=["most calls", "outcome"],
)
@pytest.mark.timeout(600)
async def test_no_request_gets_an_answer_that_is_not_documented(
    dsn: str,
    stored: Jobs,
    processes: Processes,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    jobs: int,
    calls: list[str],
) -> None:
    stored.add_many(jobs, "a")
    url = await start(processes, dsn).seen("http://")
    is_long = request.config.getoption("--long")
    run = processes.start(
        [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{url}/api/v1/openapi.json",
            *calls,
            "--checks",
            ",".join(CHECKS),
            "--max-examples",
            "200" if is_long else "4",
            "--phases",
            "examples,coverage,fuzzing" if is_long else "fuzzing",
            "--seed",
            "1",
            "--no-color",
            "--request-timeout",
            "20",
        ],
        cwd=tmp_path,
    )
    assert run.wait(580 if is_long else 60) == 0, run.stdout[-6000:] + run.stderr[-2000:]
