"""The command line: `graphile-worker-py`."""

import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from graphile_worker_py.cli.reading import reading_modules
from graphile_worker_py.processes.early import end_at_signals

# The module of each command; the command is the function with the same name. A module is imported
# when its command is called, because imports are nearly all of a command's start-up time.
_MODULES: Final = {
    "run": "run",
    "add-job": "add",
    "add-jobs": "adding_files",
    "migrate": "add",
    "jobs": "show",
    "job": "show",
    "runs": "past",
    "stats": "past",
    "counts": "show",
    "queues": "show",
    "workers": "show",
    "explain": "show",
    "complete": "admin",
    "fail": "admin",
    "reschedule": "admin",
    "remove": "admin",
    "cancel": "steer",
    "retry": "steer",
    "limits": "limits",
    "unlock": "admin",
    "pause": "pausing",
    "resume": "pausing",
    "pauses": "pausing",
    "quiet": "pausing",
    "cleanup": "admin",
    "health": "health",
    "doctor": "doctor",
    "cron": "cron",
    "config": "config",
    "postgres": "development",
    "demo": "development",
    "bench": "bench",
    "web": "web",
}


# What other job queues call it.
_INSTEAD: Final = {
    "delete": "'remove KEY' or 'complete ID'",
    "version": "'--version'",
    "help": "'--help'",
    "work": "'run'",
    "worker": "'run' or 'workers'",
    "start": "'run'",
    "status": "'health', 'counts' or 'workers'",
    "list": "'jobs'",
    "history": "'runs' or 'stats'",
    "show": "'job ID' or 'jobs'",
    "enqueue": "'add-job'",
    "add": "'add-job' or 'add-jobs'",
    "import": "'add-jobs'",
}


class _Commands(click.Group):
    """The commands by name, each imported when it is called. `run` is the default command."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program: signals count from the first moment on."""
        end_at_signals()
        return super().__call__(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        # A shell that completes the first word asks for the names of commands.
        is_completing = ctx.resilient_parsing and not args
        if not is_completing and (not args or (args[0].startswith("-") and args[0] not in own)):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete the name of a command, or an option of `run`."""
        found = super().shell_complete(ctx, incomplete)
        run = self.get_command(ctx, "run") if incomplete.startswith("-") else None
        return found if run is None else [*found, *run.shell_complete(ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _MODULES and not ctx.resilient_parsing:
            import difflib  # most calls make no mistake

            close = difflib.get_close_matches(args[0], _MODULES)
            meant = _INSTEAD.get(args[0]) or " or ".join(map(repr, close))
            if meant:
                ctx.fail(f"No such command {args[0]!r}; did you mean {meant}?")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # as click calls it
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _MODULES:
            return None
        with reading_modules():
            module = import_module(f"graphile_worker_py.cli.{_MODULES[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="graphile-worker-py", prog_name="graphile-worker-py")
def main() -> None:
    """Run jobs from PostgreSQL, side by side with Graphile Worker for Node.

    Without a command: run.
    """
    # Characters that the terminal's encoding lacks are printed as escapes, as on stderr.
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
