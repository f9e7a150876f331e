"""The command line: `graphile-worker-py`."""

import click

from graphile_worker_py.commands import add, admin, config, cron, development, show
from graphile_worker_py.commands.run import run


class _RunIsDefault(click.Group):
    """A group whose command `run` need not be named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "--version"}
        if not args or (args[0].startswith("-") and args[0] not in own):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunIsDefault, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="graphile-worker-py", prog_name="graphile-worker-py")
def main() -> None:
    """Jobs in PostgreSQL, side by side with Graphile Worker for Node.

    Without a command: run.
    """


COMMANDS = (
    run,
    *add.COMMANDS,
    *show.COMMANDS,
    *admin.COMMANDS,
    cron.cron,
    *config.COMMANDS,
    *development.COMMANDS,
)
for command in COMMANDS:
    main.add_command(command)
