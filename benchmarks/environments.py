"""Virtual environments with the other packages, created once per machine."""

import fcntl
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INSTALL_TIMEOUT = 600.0
# Fails for a Python that can't create virtual environments.
PROBE = "import ensurepip, venv, sys; print(*sys.version_info[:2])"


class UnavailableError(Exception):
    """Something can't be measured on this machine; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A package with all it needs to run at its best.

    Args:
        requirements: What to install; the first is the package, with its exact version.
        minimum: The oldest Python that it supports.
    """

    requirements: tuple[str, ...]
    minimum: tuple[int, int] = (3, 11)

    def python(self) -> str:
        """The interpreter of the environment, which is created if necessary.

        Raises:
            UnavailableError: There is no suitable Python, or the installation failed.
        """
        base, version = interpreter(self.minimum)
        name = re.sub(r"\[.*?\]", "", self.requirements[0])
        directory = cache() / f"{name}-py{version[0]}.{version[1]}"
        if not directory.exists():
            cache().mkdir(parents=True, exist_ok=True)
            with (cache() / f"{directory.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not directory.exists():  # another run may have created it
                    self._make(base, directory)
        return str(directory / "bin" / "python")

    def _make(self, base: str, directory: Path) -> None:
        with tempfile.TemporaryDirectory(dir=cache(), prefix="installing-") as scratch:
            made = Path(scratch) / "environment"
            pip = [str(made / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
            for command in ([base, "-m", "venv", str(made)], [*pip, "install", *self.requirements]):
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, timeout=INSTALL_TIMEOUT
                )
                if done.returncode != 0:
                    said = done.stderr.strip().splitlines() or ["no output"]
                    raise UnavailableError(f"{self.requirements[0]} was not installed: {said[-1]}")
            made.rename(directory)  # atomically, so that an existing one is complete


def cache() -> Path:
    """The folder of the environments."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "graphile-worker-py"


def interpreter(minimum: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """A Python that is new enough, and its version: this one, or one found on the machine.

    Raises:
        UnavailableError: There is none.
    """
    for candidate in (sys.executable, *_candidates(minimum)):
        version = _version(candidate)
        if version is not None and version >= minimum:
            return candidate, version
    wanted = ".".join(map(str, minimum))
    raise UnavailableError(f"needs Python {wanted} or newer, and none was found")


def _candidates(minimum: tuple[int, int]) -> Iterator[str]:
    names = [f"python3.{minor}" for minor in range(minimum[1], minimum[1] + 8)]
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        yield from (str(Path(folder) / name) for name in (*names, "python3"))
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, sorted(pyenv.glob("versions/*/bin/python3")))
    uv = Path.home() / ".local" / "share" / "uv" / "python"
    yield from map(str, sorted(uv.glob("*/bin/python3")))


def _version(python: str) -> tuple[int, int] | None:
    """The version of an interpreter; None if it does not run, such as a shim without a Python."""
    if not Path(python).exists():
        return None
    done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    major, minor = done.stdout.split()
    return int(major), int(minor)
