"""The blocking form has every method of the async one, with the same parameters."""

import inspect
from collections.abc import Callable
from typing import Any

from graphile_worker_py import SyncWorkerUtils, WorkerUtils


def methods(cls: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a class and its bases."""
    return {
        name: function
        for name, function in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


def shape(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults of the parameters."""
    parameters = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default) for each in parameters]


def types(function: Callable[..., Any]) -> dict[str, str]:
    """Types of the parameters and of the result, as far as both forms can have the same."""
    async_stream = " | collections.abc.AsyncIterable[graphile_worker_py.job.spec.JobSpec]"
    return {
        name: str(kind).removesuffix(async_stream).replace("sync_handles.Sync", "handles.")
        for name, kind in inspect.get_annotations(function).items()
        if name != "conn"
    }


def test_both_forms_have_the_same_methods() -> None:
    assert set(methods(SyncWorkerUtils)) == set(methods(WorkerUtils))
    assert isinstance(inspect.getattr_static(SyncWorkerUtils, "pool"), property)


def test_both_forms_of_each_method_take_and_return_the_same() -> None:
    for name, method in methods(WorkerUtils).items():
        twin = methods(SyncWorkerUtils)[name]
        assert shape(twin) == shape(method), name
        assert types(twin) == types(method), name
    assert shape(SyncWorkerUtils.__init__) == shape(WorkerUtils.__init__)
