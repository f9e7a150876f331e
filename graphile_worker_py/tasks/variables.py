"""The context variables that jobs begin with."""

import decimal
from contextvars import Context, copy_context


class JobVariables:
    """The context variables of jobs: those of the program, as they were when its pool started.

    The decimal context is an object that calculations change. So a job never gets that of the
    program, but one that is made when it first calculates, or a copy if the program has changed
    the defaults.
    """

    def __init__(self) -> None:
        self._given = [
            (variable, value)
            for variable, value in copy_context().items()
            if not isinstance(value, decimal.Context)
        ]
        self._decimal = next(
            (
                value
                for value in copy_context().values()
                if isinstance(value, decimal.Context) and _is_changed(value)
            ),
            None,
        )

    def new(self) -> Context:
        """A context for the asyncio task of a worker."""
        context = Context()
        for variable, value in self._given:
            context.run(variable.set, value)
        return context

    def begin_job(self) -> None:
        """Give the next job what it must not share."""
        if self._decimal is not None:
            decimal.setcontext(self._decimal.copy())


def _is_changed(context: decimal.Context) -> bool:
    names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp", "traps")
    return any(getattr(context, name) != getattr(decimal.DefaultContext, name) for name in names)
