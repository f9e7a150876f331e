"""How jobs are added, as statements to send in turn: for callers with and without an event loop."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any, Final, TypeAlias

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

Payload: TypeAlias = Callable[[int], str]
"""The payload of a spec as JSON text, by its place."""

CHUNK: Final = 1000
"""Most jobs that one statement adds."""
COPY_FROM: Final = 200
"""From this many jobs without a key on, COPY is faster, with the statements around it."""
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
        yield from reading("awaited", right="insert")
        jobs = yield from self._add_all(copy_to=copy_to, own_transaction=own_transaction)
        pairs = zip(self._specs, jobs, strict=True)
        yield awaited.await_jobs(self._schema, [job.id for spec, job in pairs if spec.awaited])
        return jobs

    def _add_all(self, *, copy_to: str | None, own_transaction: bool) -> Steps[list[Job]]:
        specs = self._specs
        if len(specs) == 1:
            return [(yield from self._add_one())]
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

    def _add_one(self) -> Steps[Job]:
        for _ in range(_TRIES):
            job: Job | None = yield sql.add_job(self._specs[0], self._payload(0))
            if job is not None:
                return job
        raise _contended(self._specs)

    def _add(
        self, places: Sequence[int], found: dict[int, Job], *, own_transaction: bool
    ) -> Steps[None]:
        """Try to add the jobs of some specs; those that were added are put into `found`."""
        chunks = [
            _Chunk(self._specs, at_once, self._payload, mode, own_transaction=own_transaction)
            for mode, all_of_mode in self._by_mode(places).items()
            for at_once in _slices(all_of_mode)
        ]
        results = iter((yield Pipelined(query for chunk in chunks for query in chunk.queries())))
        for chunk in chunks:
            added = zip(chunk.places, chunk.jobs(results), strict=True)
            found.update((at, job) for at, job in added if job is not None)

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
            return self._specs[at].payload_json(nan_as_null=self._nan_as_null)
        except ConfigurationError as error:
            if self._first is None:
                raise
            raise ConfigurationError(f"jobs[{self._first + at}]: {error}") from error

    def _check_all_added(self, places: Iterable[int], found: Mapping[int, Job]) -> None:
        if missing := [self._specs[at] for at in places if at not in found]:
            raise _contended(missing)


class _Chunk:
    """Specs that are added by one statement, or by one each where the function has no mode."""

    def __init__(
        self,
        specs: Sequence[JobSpec],
        places: Sequence[int],
        payload: Payload,
        mode: JobKeyMode,
        *,
        own_transaction: bool,
    ) -> None:
        self.places = places
        self._specs = [specs[at] for at in places]
        self._payload = payload
        self._payloads: list[str] = []
        self._mode = mode
        self._own_transaction = own_transaction
        self._names = None if mode is JobKeyMode.UNSAFE_DEDUPE else needed_names(self._specs)

    def queries(self) -> Iterator[Query[Any]]:
        """The statements; payloads are encoded when a statement is asked for."""
        if self._mode is JobKeyMode.UNSAFE_DEDUPE:
            for at, spec in zip(self.places, self._specs, strict=True):
                yield sql.add_job(spec, self._payload(at))
            return
        self._payloads = [self._payload(at) for at in self.places]
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


def _slices(places: Sequence[int]) -> Iterator[Sequence[int]]:
    return (places[start : start + CHUNK] for start in range(0, len(places), CHUNK))


def _contended(specs: Sequence[JobSpec]) -> GraphileWorkerError:
    keys = ", ".join(repr(spec.job_key) for spec in specs[:5])
    return GraphileWorkerError(
        f"could not add {len(specs)} job(s): jobs with key {keys} were fetched during each of "
        f"{_TRIES} tries"
    )
