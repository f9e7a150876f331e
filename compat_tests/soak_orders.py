"""Which jobs a soak adds, and what may become of them."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

QUEUES = 20
KEYS = 10


@dataclass
class Orders:
    """Jobs that one adder adds, at random, and what is to become of them.

    Args:
        who: The adder: SQL, Python or Node.
        dice: Where chance comes from.
    """

    who: str
    dice: random.Random
    number: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    # By name: how often it is to succeed, and how often to fail before.
    expected: dict[str, tuple[int, int]] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    def next(self) -> dict[str, Any]:
        """One more job, as keyword arguments of `add_job` with `identifier` and `payload`."""
        self.number += 1
        name = f"{self.who} {self.number}"
        kind = self.dice.choices(
            ["plain", "slow", "long", "queued", "keyed", "flaky", "doomed", "batch"],
            [29, 9, 2, 35, 15, 4, 2, 4],
        )[0]
        self.kinds[kind] += 1
        payload: Any = {"name": name}
        spec: dict[str, Any] = {"identifier": "step", "priority": self.dice.choice([0, 0, -1, 5])}
        self.expected[name] = (1, 0)
        match kind:
            case "slow":
                payload["ms"] = self.dice.randint(1, 60)
            case "long":
                payload["ms"] = self.dice.randint(500, 2000)
            case "queued":
                spec["queue_name"] = f"queue {self.dice.randrange(QUEUES)}"
            case "keyed":
                del self.expected[name]
                key = f"key {self.who} {self.dice.randrange(KEYS)}"
                version = self.versions[key] = self.versions.get(key, 0) + 1
                payload = {"name": key, "version": version, "ms": self.dice.randint(0, 30)}
                spec["job_key"] = key
            case "flaky":
                payload["fail_until"] = 2
                self.expected[name] = (1, 1)
                spec["queue_name"] = self.dice.choice([None, f"queue {self.number % QUEUES}"])
            case "doomed":
                payload["fail"] = "no"
                spec["max_attempts"] = 1
                self.expected[name] = (0, 1)
            case "batch":
                del self.expected[name]
                # The last item is the one that fails at first and is tried again alone.
                payload = [{}, {}, {"batch": name, "fail_until": 2}]
                spec["identifier"] = "batch"
                self.batches[name] = 2
        return {**spec, "payload": payload}


def unlike(
    found: dict[str, T],
    expected: dict[str, T],
    killed: Counter[str],
    fits: Callable[[T, T, int], bool],
) -> list[Any]:
    """Some of the names with another value than expected: name, found, expected, kills."""
    made: list[Any] = []
    for name in sorted(found.keys() | expected.keys()):
        one, other = found.get(name), expected.get(name)
        if one is None and other == (0, 1) and killed[name]:
            continue  # killed in its only attempt, before it could write anything down
        if one is None or other is None or not fits(one, other, killed[name]):
            made.append((name, one, other, killed[name]))
    return made[:5]


def outcome_fits(found: tuple[int, int], expected: tuple[int, int], kills: int) -> bool:
    """Whether a job succeeded and failed as often as it was to.

    A kill may come before it could fail, or after it succeeded and before that was recorded.
    """
    good, bad = found
    wanted, failing = expected
    most = wanted + kills if wanted else 0
    return wanted <= good <= most and failing - kills <= bad <= failing


def batch_fits(found: int, expected: int, kills: int) -> bool:
    """Whether a batch ran as often as it was to: once in each attempt."""
    return max(1, expected - kills) <= found <= expected + kills
