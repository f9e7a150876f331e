"""What a task asks for besides its payload and context, and the state that provides it."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeAlias, TypeVar, get_origin

from graphile_worker_py.errors import ConfigurationError

T = TypeVar("T")


class Inject:
    """Marks a parameter whose value a factory makes: `user: Annotated[User, Inject(load_user)]`.

    The factory is called once for each job, however many parameters ask for it. It is a function
    or an async function that returns the value, or a generator or async generator that yields it
    and cleans up after the job. A parameter of the factory is the payload, the context if it is
    named `ctx` or annotated as one, or marked in the same way.

    Args:
        factory: Makes the value.

    Raises:
        ConfigurationError: The factory is not callable.
    """

    __slots__ = ("factory",)

    def __init__(self, factory: Callable[..., Any]) -> None:
        if not callable(factory):
            raise ConfigurationError(f"Inject takes a function that makes a value, not {factory!r}")
        self.factory = factory


class FromState:
    """Marks a parameter whose value is an object of the state."""

    __slots__ = ()


Resource: TypeAlias = Annotated[T, FromState()]
"""Marks a parameter that gets an object of the state by its class: `http: Resource[AsyncClient]`.

A base class of the object does, too.
"""


class State:
    """The objects that the tasks of a worker share, for parameters that ask for them by class.

    A `lifespan` yields one. The function `setup` may return one, too.

    Args:
        resources: The objects.
        overrides: Factories that take the place of others, for tests.

    Raises:
        ConfigurationError: An override is not callable.
    """

    __slots__ = ("overrides", "resources")

    def __init__(
        self,
        *resources: Any,
        overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    ) -> None:
        self.resources = resources
        self.overrides: Mapping[Callable[..., Any], Callable[..., Any]] = dict(overrides or {})
        for factory in (*self.overrides, *self.overrides.values()):
            if not callable(factory):
                raise ConfigurationError(
                    f"overrides must map factories to factories, which {factory!r} is not"
                )

    def with_all_of(self, other: "State") -> "State":
        """The objects and overrides of both."""
        return State(
            *self.resources, *other.resources, overrides={**self.overrides, **other.overrides}
        )

    def get(self, kind: Any) -> Any:
        """The object of a class, or of a class below it.

        Raises:
            LookupError: There is none, or several; the message lists what there is.
        """
        wanted = get_origin(kind) or kind
        try:
            found = [each for each in self.resources if isinstance(each, wanted)]
        except TypeError as error:
            raise LookupError(f"{shown(kind)} is not a class to look for: {error}") from None
        exact = [each for each in found if type(each) is wanted]
        if len(exact) == 1:
            return exact[0]
        if len(found) == 1:
            return found[0]
        if found:
            kinds = ", ".join(shown(type(each)) for each in found)
            raise LookupError(f"the state has {len(found)} of them: {kinds}")
        if not self.resources:
            raise LookupError("there is no state")
        kinds = ", ".join(sorted({shown(type(each)) for each in self.resources}))
        raise LookupError(f"the state has none; it has {kinds}")


NO_STATE: Final = State()


def shown(kind: Any) -> str:
    """The name of a class in a message."""
    return kind.__qualname__ if isinstance(kind, type) else str(kind)


def marker_in(annotation: Any) -> Inject | FromState | type[State] | None:
    """What marks an annotation, so that its parameter is injected; None if nothing does."""
    if annotation is State:
        return State
    for each in getattr(annotation, "__metadata__", ()):
        if isinstance(each, Inject | FromState):
            return each
    return None
