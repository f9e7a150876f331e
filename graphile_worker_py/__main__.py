"""Run the command line: the program `graphile-worker-py`, and `python -m graphile_worker_py`."""

from graphile_worker_py.processes.early import end_at_signals


def main() -> None:
    """Handle signals from the first moment on, then import and run the command line."""
    end_at_signals()
    from graphile_worker_py.cli.main import main as command_line  # noqa: PLC0415  # see above

    command_line()


if __name__ == "__main__":
    main()
