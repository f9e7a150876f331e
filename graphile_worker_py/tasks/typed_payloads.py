"""Typed payloads: what a task's annotation asks for, and how it is built from the stored JSON."""

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any, Final, TypeAlias

from graphile_worker_py import json_codec
from graphile_worker_py.errors import ConfigurationError, PayloadError
from graphile_worker_py.tasks.signature import parameters_of, resolved

Decode: TypeAlias = Callable[[bytes], Any]
"""Builds a payload from JSON text; raises PayloadError if it does not fit."""

MOST_FAULTS: Final = 5
"""Most faults of a payload that its error names; the rest is counted."""


def payload_decoder(function: Callable[..., Any], identifier: str) -> Decode | None:
    """How to build the payload that a task function asks for.

    Payloads are built where the annotation of the first parameter names a dataclass, `TypedDict`,
    msgspec `Struct` or pydantic model, by itself or within another type (`list[Item]`). None means
    that the payload is passed on as decoded JSON: any other annotation, or none.

    Raises:
        ConfigurationError: The annotation can't be resolved or built from JSON, or the library
            for it is not installed.
    """
    given = _payload_annotation(function)
    if given is inspect.Parameter.empty:
        return None
    annotation = _resolved(given, function, identifier)
    models = list(_models(annotation))
    if any(_is_pydantic(model) for model in models):
        return _pydantic_decoder(annotation, identifier)
    return _msgspec_decoder(annotation, identifier) if models else None


def _payload_annotation(function: Callable[..., Any]) -> Any:
    for parameter in parameters_of(function) or ():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            return parameter.annotation
    return inspect.Parameter.empty


def _resolved(annotation: Any, function: Callable[..., Any], identifier: str) -> Any:
    try:
        return resolved(annotation, function)
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise ConfigurationError(
            f"the annotation {annotation!r} of the payload of task {identifier!r} can't be "
            f"resolved: {error}; its names must be there at run time, in the module of the task"
        ) from error


def _models(annotation: Any) -> Iterator[type]:
    """The classes within an annotation that are built, not passed on."""
    # `type Name = …` of Python 3.12
    annotation = getattr(annotation, "__value__", annotation)
    for candidate in (annotation, typing.get_origin(annotation)):
        if isinstance(candidate, type) and (
            _is_pydantic(candidate)
            or is_dataclass(candidate)
            or hasattr(candidate, "__struct_fields__")
            or hasattr(candidate, "__required_keys__")  # a TypedDict
        ):
            yield candidate
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def _is_pydantic(model: type) -> bool:
    return hasattr(model, "__pydantic_validator__")


def _msgspec_decoder(annotation: Any, identifier: str) -> Decode:
    msgspec = _library("msgspec", "typed", annotation, identifier)
    try:
        decoder = msgspec.json.Decoder(annotation, dec_hook=_build_within)
    except (TypeError, NameError) as error:
        raise _unusable(annotation, identifier, error) from error
    validation_error = msgspec.ValidationError

    def decode(text: bytes) -> Any:
        try:
            try:
                return decoder.decode(text)
            except validation_error:
                raise
            except msgspec.DecodeError:
                # PostgreSQL stores JSON only; lone surrogates are part of it, and our codec's.
                value = json_codec.loads(text)
                return msgspec.convert(value, annotation, dec_hook=_build_within)
        except validation_error as error:
            # Not as the cause: it may show what the payload holds, and would be logged.
            raise _misfit(_msgspec_faults(str(error))) from None
        except RecursionError as error:
            raise _misfit(["$: nested too deeply to be decoded"]) from error

    return decode


def _build_within(kind: type, value: Any) -> Any:
    """Build what msgspec does not know within what it builds: pydantic models."""
    if not hasattr(kind, "model_validate"):
        raise ValueError(f"{kind.__qualname__} can't be built from JSON")
    pydantic = importlib.import_module("pydantic")
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as error:
        raise ValueError("\n".join(_pydantic_faults(error, ""))) from None


def _pydantic_decoder(annotation: Any, identifier: str) -> Decode:
    pydantic = _library("pydantic", "pydantic", annotation, identifier)
    try:
        adapter = pydantic.TypeAdapter(annotation)
        adapter.rebuild()
    except (TypeError, NameError, pydantic.errors.PydanticUserError) as error:
        raise _unusable(annotation, identifier, error) from error

    def decode(text: bytes) -> Any:
        try:
            try:
                return adapter.validate_json(text)
            except pydantic.ValidationError as error:
                if error.errors(include_url=False)[0]["type"] != "json_invalid":
                    raise
            # PostgreSQL stores JSON only; lone surrogates are part of it, and our codec's.
            return adapter.validate_python(json_codec.loads(text))
        except pydantic.ValidationError as error:
            # Not as the cause: it shows what the payload holds, and would be logged.
            raise _misfit(_pydantic_faults(error, "$")) from None
        except ValueError as error:
            raise _misfit(["$: nested too deeply to be decoded"]) from error

    return decode


def _library(name: str, extra: str, annotation: Any, identifier: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the payload of task {identifier!r} is annotated as {_shown(annotation)}, which needs "
            f"{name}: pip install 'graphile-worker-py[{extra}]'"
        ) from error


def _unusable(annotation: Any, identifier: str, error: Exception) -> ConfigurationError:
    reason = str(error).partition("\n")[0]  # pydantic goes on at length
    return ConfigurationError(
        f"the payload of task {identifier!r} can't be of type {_shown(annotation)}: {reason}"
    )


def _shown(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


def _misfit(faults: list[str]) -> PayloadError:
    shown = faults[:MOST_FAULTS]
    if len(faults) > MOST_FAULTS:
        shown.append(f"and {len(faults) - MOST_FAULTS} more")
    return PayloadError(f"payload does not fit: {'; '.join(shown)}", faults=faults)


_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)


def _msgspec_faults(message: str) -> list[str]:
    """Say what msgspec says, path first: ``Expected `str`, got `int` - at `$.to` ``."""
    text, _, path = message.rpartition(" - at `") if message.endswith("`") else ("", "", "")
    text, path = (text, path[:-1]) if text else (message, "$")
    if text.startswith((".", "[")):
        return [f"{path}{fault}" for fault in text.split("\n")]  # from `_build_within`
    if missing := _MISSING.fullmatch(text):
        return [f"{path}.{missing[1]}: required, but missing"]
    if text.startswith(("Invalid value ", "Invalid enum value ")):
        text = "Expected one of the values that are allowed"  # for the one that was found follows
    if text.startswith(("Expected ", "Object ", "Invalid ")):
        text = f"{text[:1].lower()}{text[1:]}".replace("`", "" if text[0] == "E" else "'")
    return [f"{path}: {text}"]


def _pydantic_faults(error: Any, root: str) -> list[str]:
    faults = []
    for fault in error.errors(include_url=False, include_context=False):
        path = root + "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]
        )
        message = f"{fault['msg'][:1].lower()}{fault['msg'][1:]}"
        if fault["type"] == "missing":
            message = "required, but missing"
        elif fault["type"].endswith("_type"):
            message += f", got {type(fault['input']).__name__}"
        faults.append(f"{path}: {message}")
    return faults
