"""The bodies of requests and answers, for validation and for the OpenAPI document."""

from datetime import timedelta
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from graphile_worker_py.checks import LARGEST_WHOLE, MAX_IDENTIFIER_LENGTH
from graphile_worker_py.clock import utc_now
from graphile_worker_py.job.spec import (
    MAX_JOB_KEY_LENGTH,
    MAX_QUEUE_NAME_LENGTH,
    JobKeyMode,
    JobSpec,
)
from graphile_worker_py.sql.inspect import JobState
from graphile_worker_py.sql.job_ends import EndStatus
from graphile_worker_py.sql.limits import LimitKind
from graphile_worker_py.sql.pauses import PauseTarget
from graphile_worker_py.web.changes import Action, Change

TEXT: Final = r"^[^\x00]*$"
_IDENTIFIER: Final = r"^[^\x00\s]([^\x00]*[^\x00\s])?$"
JobId = Annotated[int, Field(ge=0, le=2**63 - 1, description="Id of the job.")]
_FAR: Final = 100 * 365 * 86_400


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewJob(_Strict):
    """A job to add."""

    task: Annotated[str, Field(min_length=1, max_length=MAX_IDENTIFIER_LENGTH, pattern=_IDENTIFIER)]
    payload: Any = Field(None, description="Any JSON value; an empty object if it is missing.")
    queue_name: Annotated[str, Field(max_length=MAX_QUEUE_NAME_LENGTH, pattern=TEXT)] | None = None
    run_at: AwareDatetime | None = Field(None, description="Not before this time.")
    run_in: Annotated[float, Field(ge=0, le=_FAR, allow_inf_nan=False)] | None = Field(
        None, description="Not before this number of seconds has passed; excludes `run_at`."
    )
    priority: Annotated[int, Field(ge=-32768, le=32767)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=32767)] | None = None
    job_key: (
        Annotated[str, Field(min_length=1, max_length=MAX_JOB_KEY_LENGTH, pattern=TEXT)] | None
    ) = None
    job_key_mode: JobKeyMode | None = None
    flags: list[Annotated[str, Field(max_length=128, pattern=TEXT)]] | None = Field(
        None, max_length=100
    )

    @model_validator(mode="after")
    def _one_time(self) -> "NewJob":
        if self.run_at is not None and self.run_in is not None:
            raise ValueError("run_at and run_in exclude each other")
        return self

    def spec(self, *, awaited: bool = False) -> JobSpec:
        """The job as the library adds it; `awaited` has a record kept of its end."""
        run_at = self.run_at
        if self.run_in is not None:
            run_at = utc_now() + timedelta(seconds=self.run_in)
        return JobSpec(
            self.task,
            self.payload,
            queue_name=self.queue_name,
            run_at=run_at,
            priority=self.priority,
            max_attempts=self.max_attempts,
            job_key=self.job_key,
            job_key_mode=self.job_key_mode,
            flags=self.flags,
            awaited=awaited,
        )


class Reschedule(_Strict):
    """When a job is to run, or with which priority."""

    run_at: AwareDatetime | None = None
    priority: Annotated[int, Field(ge=-32768, le=32767)] | None = None

    @model_validator(mode="after")
    def _something(self) -> "Reschedule":
        if self.run_at is None and self.priority is None:
            raise ValueError("give run_at, priority, or both")
        return self


class Failure(_Strict):
    """Why a job is given up."""

    reason: Annotated[str, Field(max_length=10_000, pattern=TEXT)] | None = None


class Bulk(_Strict):
    """An action on many jobs: those with `ids`, or all that `filter` lets through."""

    action: Action
    ids: list[JobId] | None = Field(None, max_length=100_000)
    filter: Annotated[str, Field(max_length=1000, pattern=TEXT)] | None = Field(
        None, description="As `q` of `GET /jobs`."
    )
    dry_run: bool = Field(default=False, description="Only count the jobs.")
    run_at: AwareDatetime | None = None
    priority: Annotated[int, Field(ge=-32768, le=32767)] | None = None
    reason: Annotated[str, Field(max_length=10_000, pattern=TEXT)] | None = None

    @model_validator(mode="after")
    def _one_choice(self) -> "Bulk":
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either ids or filter")
        given = self.run_at is not None or self.priority is not None
        if (self.action is Action.RESCHEDULE) != given:
            raise ValueError("a reschedule needs run_at or priority, other actions take neither")
        return self

    def change(self) -> Change:
        """The action with what it needs."""
        return Change(
            action=self.action, run_at=self.run_at, priority=self.priority, reason=self.reason
        )


class NewPause(_Strict):
    """What to pause: exactly one of `task`, `queue`, `pool` and `everything`."""

    task: (
        Annotated[str, Field(min_length=1, max_length=MAX_IDENTIFIER_LENGTH, pattern=TEXT)] | None
    ) = None
    queue: (
        Annotated[str, Field(min_length=1, max_length=MAX_QUEUE_NAME_LENGTH, pattern=TEXT)] | None
    ) = None
    pool: Annotated[str, Field(min_length=1, max_length=200, pattern=TEXT)] | None = None
    everything: bool = False
    reason: Annotated[str, Field(max_length=1_000, pattern=TEXT)] | None = None
    until: AwareDatetime | None = Field(None, description="When it ends by itself.")

    def targets(self) -> dict[str, Any]:
        """What was given for each kind of thing."""
        return self.model_dump(include={"task", "queue", "pool", "everything"})


class PauseOut(BaseModel):
    """A pause."""

    target: PauseTarget
    name: str = Field(description="Which task, queue or pool; empty for everything.")
    reason: str | None
    by: str
    at: str
    until: str | None
    ending: bool = Field(
        description="Whether it was resumed, and a queue is freed when its running job has ended."
    )
    notice: str | None = Field(
        None, description="What a new pause has to say: that no such task or queue is known."
    )


class PausesOut(BaseModel):
    """All pauses."""

    items: list[PauseOut]


class NewNumber(_Strict):
    """The number that a limit is to have."""

    name: Annotated[str, Field(min_length=1, max_length=1_000, pattern=TEXT)]
    amount: Annotated[int, Field(ge=0, le=LARGEST_WHOLE)] = Field(
        description="Jobs at once, or starts in the `per` seconds of a rate."
    )
    kind: LimitKind | None = Field(
        None, description="Of two limits with one name. Default: jobs at once, if there are both."
    )


class LimitOut(BaseModel):
    """A limit of tasks."""

    name: str
    kind: LimitKind
    amount: float = Field(description="The number that counts.")
    declared: float = Field(description="The number in the code.")
    set_amount: float | None = Field(description="The number that an operator has set.")
    per: float | None = Field(description="Seconds of a rate.")
    burst: int | None = Field(description="Most starts at once, of a rate.")
    in_use: int = Field(description="Permits that pools hold, or tokens that are used up.")
    tokens: int | None = Field(description="Starts that a rate allows at this moment.")
    state: str = Field(description="`free`, `full`, `draining` or `paused`.")
    waiting_reason: str | None = Field(description="Why further jobs wait, if they do.")
    tasks: list[str]
    pools: dict[str, int] = Field(description="Permits of each pool that holds some.")
    key: str | None = Field(description="What it tells jobs apart by; null if it does not.")
    values: dict[str, int] = Field(
        description="With a key, how many jobs of each value run: at most 100, the most first."
    )


class LimitsOut(BaseModel):
    """All limits."""

    items: list[LimitOut]


class BreakerName(_Strict):
    """Which breaker is meant."""

    name: Annotated[str, Field(min_length=1, max_length=1_000, pattern=TEXT)]


class BreakerOut(BaseModel):
    """A circuit breaker of tasks."""

    name: str
    state: str = Field(description="`closed`, `open`, or `half-open`: one job is let through.")
    failures: int = Field(description="How many failures have opened it, and kept it open.")
    opened_at: str | None
    open_until: str | None = Field(description="When it lets one job through.")
    open_for: float | None = Field(description="Seconds until then.")
    reason: str | None = Field(description="The last of these failures.")
    tasks: list[str]


class BreakersOut(BaseModel):
    """All circuit breakers."""

    items: list[BreakerOut]


class JobOut(BaseModel):
    """A job."""

    id: int
    state: JobState
    task: str
    queue_name: str | None
    job_key: str | None
    priority: int
    run_at: str
    attempts: int
    max_attempts: int
    created_at: str
    updated_at: str
    locked_at: str | None
    locked_by: str | None
    revision: int
    flags: list[str]
    last_error: str | None
    payload: Any


class WindowOut(BaseModel):
    """Which jobs were looked at."""

    complete: bool = Field(description="Whether no older jobs could follow.")
    from_id: int | None = Field(description="The smallest id that was looked at.")


class JobsOut(BaseModel):
    """A page of jobs."""

    items: list[JobOut]
    next: str | None = Field(description="The `after` of the next page.")
    window: WindowOut


class Added(BaseModel):
    """A job that was added."""

    id: int


class Outcome(BaseModel):
    """How a job has ended."""

    status: EndStatus = Field(description="`gone`: it has ended, and no record of how was kept.")
    result: Any = Field(None, description="What the task returned.")
    error: str | None
    attempts: int | None
    started_at: str | None
    finished_at: str | None
    duration: float | None = Field(description="Seconds that the last attempt took.")


class AddedJob(Added):
    """A job that was added, and how it ended if the request waited for that."""

    outcome: Outcome | None = Field(None, description="Only with `Prefer: wait`.")


class BulkError(BaseModel):
    """What is wrong with one of many jobs."""

    index: int
    pointer: str
    detail: str


class BulkAdded(BaseModel):
    """What became of many jobs."""

    created: int
    errors: list[BulkError]


class Done(BaseModel):
    """What a bulk action did."""

    operation: str
    action: Action
    count: int = Field(description="How many jobs were found.")
    complete: bool = Field(description="Whether all jobs were looked at.")
    dry_run: bool
    done: int
    skipped: int = Field(description="Jobs that run, or are gone.")


class StackOut(BaseModel):
    """Where the task of a job is at this moment."""

    job_id: int
    state: JobState
    stack: str | None = Field(
        description="None if it does not run, or no Python pool has answered."
    )


class ReasonOut(BaseModel):
    """One reason why a job does not run."""

    cause: str
    fact: str
    remedy: str | None
    blocks: bool


class ExplanationOut(BaseModel):
    """Why a job does not run."""

    job_id: int
    state: JobState | None
    reasons: list[ReasonOut]
    missing: str | None


class FaultOut(BaseModel):
    """A value that is wrong."""

    pointer: str
    detail: str


class ProblemOut(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FaultOut] = []
