"""What a task function takes: its payload, and its context if it asks for it."""

import collections.abc
import functools
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final

from graphile_worker_py.errors import ConfigurationError
from graphile_worker_py.tasks.injection import marker_in

CONTEXTS: Final = ("JobContext", "SyncJobContext", "ProcessJobContext")
"""Names of the classes of contexts; importing them here would import the driver."""
_CONTEXT_NAMES: Final = ("ctx", "context")
_NOT_GIVEN: Final = inspect.Parameter.empty
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def arguments_of(
    function: Callable[..., Any], identifier: str, *, context: str
) -> tuple[int, tuple[str, ...]]:
    """How many of payload and context a task function takes, and what else is injected, by name.

    Args:
        function: The function.
        identifier: Identifier of the task, for messages.
        context: Name of the class of the context that it would get.

    Raises:
        ConfigurationError: A worker can't call it with a payload and this context. The message
            shows the right form.
    """
    target = unwrapped(function)
    fault = "is a class" if inspect.isclass(target) else None
    parameters = parameters_of(function)
    if fault is None and inspect.isbuiltin(target):
        # Such as `print`: what it does with more than a payload is unknown, if it says anything.
        return 1 if parameters is None else min(1, len(parameters)), ()
    count, injected = 1, tuple[str, ...]()
    if fault is None and parameters is not None:
        injected = tuple(each.name for each in parameters if is_marked(each.annotation, function))
        own = [each for each in parameters if each.name not in injected]
        fault = _fault_in_injected(parameters, injected) or _fault_in(own, function, context)
        count = sum(parameter.kind in _POSITIONAL for parameter in own[:2])
    if fault is not None:
        form = _form(target, identifier, context)
        raise ConfigurationError(
            f"task {identifier!r} {fault}; a task takes its payload, and then its context if it "
            f"needs it: {form}"
        )
    return count, injected


def _fault_in_injected(
    parameters: Sequence[inspect.Parameter], injected: Sequence[str]
) -> str | None:
    """Why parameters that are injected can't be; None if they can."""
    if not injected:
        return None
    if parameters[0].name in injected:
        return f"takes {parameters[0].name!r}, which is injected, without a payload before it"
    after = [each for each in parameters if each.kind in _POSITIONAL]
    while after and after[0].name not in injected:
        del after[0]
    for parameter in after:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            return f"takes {parameter.name!r} by position only, but it is injected by keyword"
        if parameter.name not in injected and parameter.default is _NOT_GIVEN:
            return f"takes {parameter.name!r} after {after[0].name!r}, which is injected"
    return None


def _fault_in(
    parameters: Sequence[inspect.Parameter], function: Callable[..., Any], context: str
) -> str | None:
    """Why a function with these parameters can't be a task; None if it can."""
    positional = 0
    for parameter in parameters:
        name = parameter.name
        if parameter.kind is parameter.VAR_POSITIONAL:
            return f"takes *{name}{_WRAPPER}"
        if parameter.kind is parameter.VAR_KEYWORD:
            return f"takes **{name}, but nothing is passed by keyword{_WRAPPER}"
        if parameter.kind is parameter.KEYWORD_ONLY:
            is_asked_for = parameter.default is None and contexts_in(parameter.annotation, function)
            if parameter.default is _NOT_GIVEN or is_asked_for:
                return f"takes {name!r} by keyword, but nothing is passed by keyword"
            continue
        positional += 1
        if positional > 2:
            if parameter.default is _NOT_GIVEN:
                return f"takes more than payload and context: {name!r}"
            continue
        asked_for = contexts_in(parameter.annotation, function)
        is_context = is_named_as_context(parameter) or bool(asked_for)
        if positional == 1 and (asked_for or (is_context and parameter.annotation is _NOT_GIVEN)):
            return f"takes its context first, as {name!r}"
        if positional == 2 and not is_context:
            return (
                f"takes {name!r} after its payload, but fields of a payload are not passed singly"
            )
        if positional == 2 and asked_for and context not in asked_for:
            return f"asks for a {' or '.join(sorted(asked_for))}, but gets a {context}"
    return None


_WRAPPER: Final = " (a wrapper around a function needs functools.wraps)"


def is_named_as_context(parameter: inspect.Parameter) -> bool:
    """Whether a parameter has a name that contexts have."""
    return parameter.name.strip("_") in _CONTEXT_NAMES


def _form(target: Any, identifier: str, context: str) -> str:
    name = getattr(target, "__name__", identifier)
    if not name.isidentifier() or inspect.isclass(target) or name == "__call__":
        name = "run"
    keyword = "async def" if inspect.iscoroutinefunction(target) else "def"
    return f"{keyword} {name}(payload, ctx: {context})"


def unwrapped(function: Callable[..., Any]) -> Any:
    """What decides how a callable runs: the inner function of a partial, an object's __call__."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return type(function).__call__


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """The parameters of a function; None if it does not say, as some built-ins.

    Annotations may refer to names that only type checkers import. From Python 3.14 on they are
    evaluated when they are read: those that can't be are references to their names then.
    """
    try:
        if sys.version_info >= (3, 14):
            from annotationlib import Format  # noqa: PLC0415  # new in 3.14

            signature = inspect.signature(function, annotation_format=Format.FORWARDREF)
        else:
            signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    return list(signature.parameters.values())


def resolved(annotation: Any, function: Callable[..., Any]) -> Any:
    """An annotation whose names are replaced by what they stand for in the function's module.

    Raises:
        Exception: A name is not known at run time, or the annotation is not valid.
    """
    # Names of the standard library may be imported for type checkers only: they are known anyway.
    names = {**vars(typing), **vars(collections.abc), **_globals(function)}
    holder = SimpleNamespace(__annotations__={"payload": annotation})
    return typing.get_type_hints(holder, globalns=names, include_extras=True)["payload"]


def is_marked(annotation: Any, function: Callable[..., Any]) -> bool:
    """Whether an annotation marks its parameter as injected."""
    if isinstance(annotation, str | typing.ForwardRef):
        text = str(getattr(annotation, "__forward_arg__", annotation))
        if _PLAIN.fullmatch(text):
            return False
        try:
            annotation = resolved(annotation, function)
        except Exception:  # the error is reported at the start of a worker
            return _MARKS.search(text) is not None
    return marker_in(annotation) is not None


_PLAIN: Final = re.compile(r"(dict|list|str|int|float|bool|None|Any|object)\b.*", re.DOTALL)
"""Annotations that need no look at what their names stand for."""
_MARKS: Final = re.compile(r"\b(Inject|Resource|State)\b")


def contexts_in(annotation: Any, function: Callable[..., Any]) -> set[str]:
    """Names of the classes of contexts that an annotation allows."""
    if annotation is _NOT_GIVEN:
        return set()
    if isinstance(annotation, str | typing.ForwardRef):
        try:
            annotation = resolved(annotation, function)
        except Exception:  # imported for type checkers only: its text has to do
            text = str(getattr(annotation, "__forward_arg__", annotation))
            return set(re.findall(r"\w+", text)) & set(CONTEXTS)
    if isinstance(annotation, type):
        return {
            each.__name__
            for each in annotation.__mro__
            if each.__name__ in CONTEXTS and each.__module__.startswith(f"{_PACKAGE}.")
        }
    within = (contexts_in(each, function) for each in typing.get_args(annotation))
    return set[str]().union(*within)


_PACKAGE: Final = __name__.partition(".")[0]


def _globals(function: Any) -> Mapping[str, Any]:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not hasattr(function, "__globals__"):
        function = inspect.unwrap(type(function).__call__)
    names: Mapping[str, Any] = getattr(function, "__globals__", {})
    return names
