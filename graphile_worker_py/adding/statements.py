"""How jobs are added, as statements to send in turn: for callers with and without an event loop."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any, Final

from graphile_worker_py.adding.copy import copied
from graphile_worker_py.adding.pairing import needed_names, paired
from graphile_worker_py.checks import check_whole
from graphile_worker_py.errors import ConfigurationError, GraphileWorkerError
from graphile_worker_py.job import Job
from graphile_worker_py.job.spec import JobKeyMode, JobSpec
from graphile_worker_py.postgres.query import Pipelined, Query, Steps
from graphile_worker_py.sql import add_jobs as sql
from graphile_worker_py.sql import awaited
from graphile_worker_py.sql.side_tables import reading

CHUNK: Final = 1000
"""Most jobs that one statement adds."""
COPY_FROM: Final = 200
"""From this many jobs without a key on, COPY is faster, with the statements around it."""
LARGEST_PAYLOAD: Final = 2**28 - 1
"""Most bytes of a payload as JSON text: what PostgreSQL's `jsonb` can hold.

`json` holds more, but jobs whose payloads are arrays are merged as `jsonb`, and messages between
client and server end at 1 GB, where a payload can be twice as long, because it is quoted.
"""
CHUNK_LENGTH: Final = 2**23
"""Most characters of payloads that one statement adds, unless a single one is longer.

Together, payloads could exceed the limit of a message. And libpq moves what is left of a message
each time that a part was sent, so the time grows with the square of its size.
"""
STREAM_CHUNK: Final = 10_000
"""Most jobs of a stream that are added at once, unless the caller says otherwise."""

# The SQL function adds nothing for a key whose job is being fetched at that moment. By the next
# try the fetch is committed, and the key is free. Only a fetch during each try exhausts the tries.
_TRIES: Final = 20


class Addition:
    """Jobs to be added, all or none.

    Of several specs with one key the last one counts; all of them get its job.

    Args:
        specs: The jobs.
        schema: Schema of the job tables.
        first: Number of the first one in messages; None for a single job, which has no number.
        nan_as_null: Whether NaN and infinities become null, instead of being refused.
    """

    def __init__(
        self,
        specs: Sequence[JobSpec],
        *,
        schema: str,
        first: int | None = 0,
        nan_as_null: bool = False,
    ) -> None:
        self._schema = schema
        self._specs = specs
        self._first = first
        self._nan_as_null = nan_as_null
        self._is_awaited = any(spec.awaited for spec in specs)
        self._has_keys = any(spec.job_key is not None for spec in specs)

    @property
    def needs_transaction(self) -> bool:
        """Whether several statements may be needed: a job with a key may need a second try."""
        if self._is_awaited:
            return True
        return len(self._specs) >= (2 if self._has_keys else COPY_FROM)

    def steps(
        self, *, copy_to: str | None = None, own_transaction: bool = False
    ) -> Steps[list[Job]]:
        """Add the jobs; the generator returns them in the order of the specs.

        Args:
            copy_to: The schema, if the connection can run COPY.
            own_transaction: Whether the transaction is ours, so that settings may be changed
                until it ends.

        Raises:
            ConfigurationError: A payload can't be written as JSON.
            GraphileWorkerError: A job with one of the keys was fetched during each of many tries.
            MissingTablesError: A job is to be awaited, and the tables of history are missing.
        """
        if not self._is_awaited:
            return (yield from self._add_all(copy_to=copy_to, own_transaction=own_transaction))
        yield from reading(self._schema, "awaited", right="insert")
        jobs = yield from self._add_all(copy_to=copy_to, own_transaction=own_transaction)
        pairs = zip(self._specs, jobs, strict=True)
        yield awaited.await_jobs(self._schema, [job.id for spec, job in pairs if spec.awaited])
        return jobs

    def _add_all(self, *, copy_to: str | None, own_transaction: bool) -> Steps[list[Job]]:
        specs = self._specs
        if len(specs) == 1:
            return [(yield from add_alone(specs[0], self._payload(0)))]
        if copy_to is not None and not self._has_keys and len(specs) >= COPY_FROM:
            jobs = yield from copied(specs, self._payload, schema=copy_to)
            if jobs is not None:
                return jobs
        # One place for each key, that of its last spec.
        places = {spec.job_key or at: at for at, spec in enumerate(specs)}
        in_order = self._in_order(places.values())
        found: dict[int, Job] = {}
        for _ in range(_TRIES):
            missing = [at for at in in_order if at not in found]
            if not missing:
                break
            yield from self._add(missing, found, own_transaction=own_transaction)
        else:
            self._check_all_added(places.values(), found)
        return [found[places[spec.job_key or at]] for at, spec in enumerate(specs)]

    def _add(
        self, places: Sequence[int], found: dict[int, Job], *, own_transaction: bool
    ) -> Steps[None]:
        """Try to add the jobs of some specs; those that were added are put into `found`."""
        chunks: list[_Chunk] = []

        # Payloads are encoded while the server works on the statement before.
        def queries() -> Iterator[Query[Any]]:
            for mode, all_of_mode in self._by_mode(places).items():
                for at_once, payloads in self._slices(all_of_mode):
                    specs = [self._specs[at] for at in at_once]
                    chunk = _Chunk(at_once, specs, payloads, mode, own_transaction=own_transaction)
                    chunks.append(chunk)
                    yield from chunk.queries()

        results = iter((yield Pipelined(queries())))
        for chunk in chunks:
            added = zip(chunk.places, chunk.jobs(results), strict=True)
            found.update((at, job) for at, job in added if job is not None)

    def _slices(self, places: Sequence[int]) -> Iterator[tuple[list[int], list[str]]]:
        """Places in slices for one statement each, with their payloads."""
        at_once: list[int] = []
        payloads: list[str] = []
        length = 0
        for at in places:
            payload = self._payload(at)
            length += len(payload)
            if at_once and (len(at_once) == CHUNK or length > CHUNK_LENGTH):
                yield at_once, payloads
                at_once, payloads, length = [], [], len(payload)
            at_once.append(at)
            payloads.append(payload)
        if at_once:
            yield at_once, payloads

    def _in_order(self, places: Iterable[int]) -> list[int]:
        """Places in the order of their keys: additions that share keys lock them in one order."""
        keys = [self._specs[at].job_key or "" for at in range(len(self._specs))]
        return sorted(places, key=keys.__getitem__) if self._has_keys else list(places)

    def _by_mode(self, places: Sequence[int]) -> Mapping[JobKeyMode, Sequence[int]]:
        """Places by what happens to a taken key: the SQL function takes one mode for all."""
        if not self._has_keys:
            return {JobKeyMode.REPLACE: places}
        groups: dict[JobKeyMode, list[int]] = defaultdict(list)
        for at in places:
            spec = self._specs[at]
            mode = None if spec.job_key is None else spec.job_key_mode
            groups[JobKeyMode.REPLACE if mode is None else JobKeyMode(mode)].append(at)
        return {mode: groups[mode] for mode in JobKeyMode if mode in groups}

    def _payload(self, at: int) -> str:
        try:
            return payload_of(self._specs[at], nan_as_null=self._nan_as_null)
        except ConfigurationError as error:
            if self._first is None:
                raise
            raise ConfigurationError(f"jobs[{self._first + at}]: {error}") from error

    def _check_all_added(self, places: Iterable[int], found: Mapping[int, Job]) -> None:
        if missing := [self._specs[at] for at in places if at not in found]:
            raise _contended(missing)


def add_alone(spec: JobSpec, payload: str) -> Steps[Job]:
    """Add one job, in a transaction of its own.

    Raises:
        GraphileWorkerError: A job with its key was fetched during each of many tries.
    """
    for _ in range(_TRIES):
        job: Job | None = yield sql.add_job(spec, payload, own_transaction=True)
        if job is not None:
            return job
    raise _contended([spec])


class _Chunk:
    """Specs that are added by one statement, or by one each where the function has no mode."""

    def __init__(
        self,
        places: Sequence[int],
        specs: Sequence[JobSpec],
        payloads: Sequence[str],
        mode: JobKeyMode,
        *,
        own_transaction: bool,
    ) -> None:
        self.places = places
        self._specs = specs
        self._payloads = payloads
        self._mode = mode
        self._own_transaction = own_transaction
        self._names = None if mode is JobKeyMode.UNSAFE_DEDUPE else needed_names(specs, payloads)

    def queries(self) -> Iterator[Query[Any]]:
        """The statements."""
        if self._mode is JobKeyMode.UNSAFE_DEDUPE:
            for spec, payload in zip(self._specs, self._payloads, strict=True):
                yield sql.add_job(spec, payload)
            return
        yield sql.add_jobs(
            self._specs,
            self._payloads,
            preserve_run_at=self._mode is JobKeyMode.PRESERVE_RUN_AT,
            own_transaction=self._own_transaction,
        )
        if self._names is not None:
            yield self._names

    def jobs(self, results: Iterator[Any]) -> list[Job | None]:
        """The job of each spec, from the results of the statements; None if it was not added."""
        if self._mode is JobKeyMode.UNSAFE_DEDUPE:
            return list(islice(results, len(self._specs)))
        rows = next(results)
        names = None if self._names is None else next(results)
        return paired(self._specs, self._payloads, rows, names)


def check_specs(specs: Sequence[JobSpec], *, first: int | None = 0) -> None:
    """Check that specs are specs; `first` is the number of the first one in messages."""
    for at, spec in enumerate(specs, start=first or 0):
        if not isinstance(spec, JobSpec):
            raise ConfigurationError(f"jobs[{at}] must be a JobSpec, not {spec!r}")


def checked_specs(
    specs: Sequence[JobSpec], *, now: datetime | None, first: int | None = 0
) -> Sequence[JobSpec]:
    """Check that specs are specs; those without a time get `now`, unless it is None."""
    check_specs(specs, first=first)
    if now is None:
        return specs
    return [replace(spec, run_at=now) if spec.run_at is None else spec for spec in specs]


def chunks(specs: Iterable[JobSpec], size: int) -> Iterator[list[JobSpec]]:
    """The specs in lists of this size; each is read when it is asked for."""
    check_iterable(specs)
    left = iter(specs)
    while chunk := list(islice(left, size)):
        yield chunk


def check_chunk_size(size: object) -> None:
    """Check how many jobs of a stream are to be added at once."""
    check_whole("chunk_size", size, smallest=1)


def note_added(error: Exception, added: int) -> None:
    """Note on an exception how many jobs of a stream were added before it."""
    error.add_note(f"add_jobs_from had added the {added} jobs before this chunk")


def check_iterable(specs: object) -> None:
    """Check that what should be specs can be iterated."""
    if isinstance(specs, str | bytes | Mapping) or not isinstance(specs, Iterable):
        raise ConfigurationError(f"jobs must be a list of JobSpec, not {specs!r}")


def payload_of(spec: JobSpec, *, nan_as_null: bool) -> str:
    """The payload of a spec as JSON text.

    Raises:
        ConfigurationError: It can't be written as JSON, or is too large.
    """
    payload = spec.payload_json(nan_as_null=nan_as_null)
    if len(payload) <= LARGEST_PAYLOAD // 4:  # a character has up to four bytes
        return payload
    size = len(payload.encode())
    if size > LARGEST_PAYLOAD:
        raise ConfigurationError(
            f"payload of task {spec.identifier!r} has {size:,} bytes as JSON; at most "
            f"{LARGEST_PAYLOAD:,} are allowed: store it elsewhere, and add its address"
        )
    return payload


def _contended(specs: Sequence[JobSpec]) -> GraphileWorkerError:
    keys = ", ".join(repr(spec.job_key) for spec in specs[:5])
    return GraphileWorkerError(
        f"could not add {len(specs)} job(s): jobs with key {keys} were fetched during each of "
        f"{_TRIES} tries"
    )
