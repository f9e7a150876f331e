"""Immutable records: frozen dataclasses that share their methods."""

import inspect
from collections.abc import Callable, KeysView
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from inspect import Parameter, Signature
from typing import Any, ClassVar, dataclass_transform


class _Signature:
    """The signature of a class of records, which `help` shows; made when it is asked for."""

    def __get__(self, record: object, kind: type) -> Signature:
        if record is not None:
            raise AttributeError("a record has no signature, its class has")
        return Signature([_parameter(each) for each in fields(kind)])


def _parameter(of: Field[Any]) -> Parameter:
    default = of.default if of.default_factory is MISSING else of.default_factory
    return Parameter(
        of.name,
        Parameter.KEYWORD_ONLY if of.kw_only else Parameter.POSITIONAL_OR_KEYWORD,
        default=Parameter.empty if default is MISSING else default,
        annotation=of.type,
    )


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
class Record:
    """Base of records: its subclasses are frozen dataclasses and need no decorator.

    They share the methods below, because `dataclass` compiles those of each class anew, which
    takes longer than all else that a module of records does when it is imported. Fields are
    keyword-only, unless the class is declared with `kw_only=False`. What is created for every job
    is better a dataclass with slots.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    __signature__: ClassVar = _Signature()
    _names: ClassVar[KeysView[str]] = {}.keys()
    _positional: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}
    _factories: ClassVar[dict[str, Callable[[], Any]]] = {}

    def __init_subclass__(cls, *, kw_only: bool = True) -> None:
        super().__init_subclass__()
        dataclass(init=False, repr=False, eq=False, kw_only=kw_only)(cls)
        known = {each.name: each for each in fields(cls)}
        cls._names = known.keys()
        cls._positional = tuple(name for name, each in known.items() if not each.kw_only)
        cls._defaults = {
            name: each.default for name, each in known.items() if each.default is not MISSING
        }
        cls._factories = {
            name: each.default_factory
            for name, each in known.items()
            if each.default_factory is not MISSING
        }

    def __init__(self, *args: Any, **values: Any) -> None:
        if args:
            values = self._named(args, values)
        if values.keys() != self._names:
            values = self._completed(values)
        self.__dict__.update(values)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the values, or replace them with `object.__setattr__`."""

    def _named(self, args: tuple[Any, ...], values: dict[str, Any]) -> dict[str, Any]:
        named = dict(zip(self._positional, args, strict=False))
        if len(named) < len(args) or not named.keys().isdisjoint(values):
            self._check_arguments(*args, **values)
        return named | values

    def _completed(self, values: dict[str, Any]) -> dict[str, Any]:
        found = self._defaults | values
        for name in self._factories.keys() - found.keys():
            found[name] = self._factories[name]()
        if found.keys() != self._names:
            self._check_arguments(**found)
        return found

    def _check_arguments(self, *args: Any, **values: Any) -> None:
        try:
            inspect.signature(type(self)).bind(*args, **values)
        except TypeError as error:
            raise TypeError(f"{type(self).__qualname__}: {error}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        shown = [f"{e.name}={getattr(self, e.name)!r}" for e in fields(self) if e.repr]
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._names)
