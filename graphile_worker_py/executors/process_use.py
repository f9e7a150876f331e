"""How long a process of tasks is used, and how closely its memory is watched."""

from graphile_worker_py.records import Record


class ProcessUse(Record):
    """Limits of the use of processes. They are no options: only tests need other values.

    Attributes:
        jobs: Number of jobs that a process runs before a new one takes its place. A new one costs
            a fifth of a second of processor time and more, as much as a thousand short jobs. What
            leaks memory is stopped by `growth` much earlier.
        growth: Bytes that a process may grow by, after its first job, before a new one takes its
            place.
        idle: Seconds after which a process without a job is ended.
        look: Seconds between two measurements of a process's memory.
        looks_per_group: One of this many measurements includes the processes that it has started.
        group_age: Seconds for which a measurement of all processes of the machine is used again.
    """

    jobs: int = 10_000
    growth: int = 256 * 1024**2
    idle: float = 60.0
    look: float = 0.05
    looks_per_group: int = 20
    group_age: float = 0.9
