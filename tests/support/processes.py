"""Start child processes that end with the test at the latest."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.eventually import eventually

POLL_INTERVAL = 0.02


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would lead a child to another database."""
    unwanted = ("PG", "DATABASE_URL", "GRAPHILE_", "NODE_OPTIONS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return {**kept, **(extra or {})}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is not reaped yet does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


class Process:
    """A running child with its output, told apart line by line."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str = "",
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="graphile-worker-py-process-")
        self._stdout = Path(self._directory.name) / "stdout"
        self._stderr = Path(self._directory.name) / "stderr"
        given = Path(self._directory.name) / "stdin"
        given.write_text(stdin)
        # Files, not pipes: nobody has to read them in time, so nothing can hang on a full one.
        with given.open() as source, self._stdout.open("w") as out, self._stderr.open("w") as err:
            self._popen = subprocess.Popen(
                command,
                stdin=source,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=clean_environment(env),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The child's process id, also that of its process group."""
        return self._popen.pid

    @property
    def stdout(self) -> str:
        """What it wrote to its standard output so far."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it wrote to its standard error so far."""
        return self._stderr.read_text(errors="replace")

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the number of the signal that ended it; None while it runs."""
        return self._popen.poll()

    def lines(self, prefix: str = "") -> list[str]:
        """The complete lines of its standard output that start with `prefix`."""
        complete, _, _ = self.stdout.rpartition("\n")
        return [line for line in complete.split("\n") if line.startswith(prefix)]

    def wait_for(self, prefix: str, timeout: float = 15.0, *, count: int = 1) -> str:
        """Wait for the `count`th line of its standard output that starts with `prefix`.

        Blocks this thread: in an async test whose event loop has work to do, use `seen`.
        """
        deadline = time.monotonic() + timeout
        while True:
            # In this order, the output of a child that has ended is complete when it is read.
            ended = self.returncode is not None or time.monotonic() >= deadline
            lines = self.lines(prefix)
            if len(lines) >= count:
                return lines[count - 1]
            if ended:
                raise AssertionError(self._missing(prefix, count))
            time.sleep(POLL_INTERVAL)

    async def seen(self, prefix: str, timeout: float = 15.0, *, count: int = 1) -> str:
        """Like `wait_for`, while the event loop goes on."""

        def line() -> str | None:
            if self.returncode is not None:
                return self.wait_for(prefix, 0, count=count)
            lines = self.lines(prefix)
            assert len(lines) >= count, self._missing(prefix, count)
            return lines[count - 1] or "\n"

        found = await eventually(line, timeout=timeout, interval=POLL_INTERVAL)
        assert found is not None
        return found

    def terminate(self) -> None:
        """Ask it to end, with SIGTERM."""
        self._popen.terminate()

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        self._popen.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._popen.kill()

    def wait(self, timeout: float = 15.0) -> int:
        """Wait for its end and return the exit code."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired as error:
            message = f"{self._popen.args!r} still runs after {timeout} s\n{self._output()}"
            raise AssertionError(message) from error

    def end(self) -> None:
        """Kill it, with the children it may have, and forget its output."""
        if self._popen.returncode is None:
            # Not waited for yet, so its group id can't belong to anybody else.
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
        self._directory.cleanup()

    def _missing(self, prefix: str, count: int) -> str:
        wanted = f"no line number {count} that starts with {prefix!r}"
        return f"{wanted}; exit code {self.returncode}\n{self._output()}"

    def _output(self) -> str:
        return f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class Processes:
    """Starts child processes and ends them all."""

    def __init__(self) -> None:
        self._started: list[Process] = []

    def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str = "",
    ) -> Process:
        """Start a child; its environment is ours without `PG*`, `DATABASE_URL`, `GRAPHILE_*`."""
        process = Process(command, env=env, cwd=cwd, stdin=stdin)
        self._started.append(process)
        return process

    def end_all(self) -> None:
        """Kill what still runs."""
        while self._started:
            self._started.pop().end()
