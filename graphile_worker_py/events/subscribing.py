"""Where subscribers register, and where events are emitted."""

import logging
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from graphile_worker_py.errors import ConfigurationError, traceback_of
from graphile_worker_py.events.event import Event
from graphile_worker_py.processes.interrupts import is_ctrl_c

logger = logging.getLogger("graphile_worker_py.events")

E = TypeVar("E", bound=Event)


class Events:
    """Emits events to the functions that subscribe to them.

    Subscribers are called synchronously, in the order of their subscription, and must not block.
    If one raises, the error is logged; the others are still called.
    """

    def __init__(self) -> None:
        self._subscriptions: list[_Subscription] = []
        self.heard_by = _Hearers(lambda: self._subscriptions)
        """The subscribers of each kind of event. Hot paths look here whether there are any."""

    def subscribe(
        self, event: type[E] | str, subscriber: Callable[[E], object]
    ) -> Callable[[], None]:
        """Call `subscriber` for each event of this kind.

        Args:
            event: The class of the event, which stands for its subclasses, too: a subscriber of
                `JobEvent` hears all events about jobs, and one of `JobError` hears `JobFailed`.
                Or Graphile Worker's name for an event (`"job:error"`), which stands for that event
                only.
            subscriber: Called with the event; a plain function.

        Returns:
            A function that ends the subscription.

        Raises:
            ConfigurationError: There is no such event, or the subscriber is not a plain function.
        """
        _check_event(event)
        _check_subscriber(subscriber)
        subscription = _Subscription(event, subscriber)
        self._subscriptions.append(subscription)
        self.heard_by.clear()

        def unsubscribe() -> None:
            self._subscriptions = [each for each in self._subscriptions if each is not subscription]
            self.heard_by.clear()

        return unsubscribe

    def wants(self, event: type[Event]) -> bool:
        """Whether the event has a subscriber; without one, hot paths skip creating it."""
        return bool(self.heard_by[event])

    def emit(self, event: Event) -> None:
        """Call the subscribers of this kind of event."""
        for subscriber in self.heard_by[type(event)]:
            try:
                subscriber(event)
            except BaseException as error:  # SystemExit included: it must not end a worker
                if isinstance(error, KeyboardInterrupt) and is_ctrl_c(error):
                    raise
                logger.error(  # noqa: TRY400  # which may fail on the error
                    "Subscriber %r failed on event %s\n%s",
                    subscriber,
                    event.name,
                    traceback_of(error),
                )


class _Hearers(dict[type[Event], tuple[Callable[[Any], object], ...]]):
    """The subscribers of each kind of event that was asked for since the last subscription.

    Looking up a kind that was asked for costs no call of a Python function (measured: 30 instead
    of 150 ns, four times for each job).
    """

    def __init__(self, subscriptions: Callable[[], list["_Subscription"]]) -> None:
        super().__init__()
        self._subscriptions = subscriptions

    def __missing__(self, kind: type[Event]) -> tuple[Callable[[Any], object], ...]:
        subscribers = tuple(each.subscriber for each in self._subscriptions() if each.hears(kind))
        self[kind] = subscribers
        return subscribers


class _Subscription:
    def __init__(self, event: type[Event] | str, subscriber: Callable[[Any], object]) -> None:
        self.event = event
        self.subscriber = subscriber

    def hears(self, kind: type[Event]) -> bool:
        if isinstance(self.event, str):
            return getattr(kind, "name", None) == self.event
        return issubclass(kind, self.event)


def _check_event(event: object) -> None:
    if isinstance(event, str):
        names = {kind.name for kind in _descendants(Event) if hasattr(kind, "name")}
        if event not in names:
            known = ", ".join(sorted(names))
            raise ConfigurationError(f"there is no event {event!r}; events are {known}")
    elif not isinstance(event, type) or not issubclass(event, Event):
        raise ConfigurationError(
            f"event must be a class of events or a name like 'job:start', not {event!r}"
        )


def _check_subscriber(subscriber: object) -> None:
    if not callable(subscriber):
        raise ConfigurationError(f"subscriber must be a function, not {subscriber!r}")
    # Objects whose class has an async __call__ are no functions by themselves.
    if iscoroutinefunction(subscriber) or iscoroutinefunction(type(subscriber).__call__):
        raise ConfigurationError(
            f"subscriber must be a plain function, not the async {subscriber!r}, which would "
            f"never be awaited; put the event into a queue, for example"
        )


def _descendants(kind: type[Event]) -> list[type[Event]]:
    below = kind.__subclasses__()
    return below + [further for each in below for further in _descendants(each)]
