"""Packages of npm, each installed once per machine into the user's cache."""

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

INSTALL_TIMEOUT = 600.0


def cache() -> Path:
    """The directory with a folder for each package."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "graphile-worker-py"


def install(spec: str) -> Path:
    """The directory whose `node_modules` holds a package, installed if it is not there.

    Raises:
        LookupError: npm is not installed.
    """
    directory = cache() / spec
    if directory.exists():
        return directory
    npm = shutil.which("npm")
    if npm is None:
        message = f"npm is not installed, which is needed for {spec}"
        raise LookupError(message)
    lock_file = cache() / f"{spec}.lock"
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.exists():  # another run installed it while this one waited
            return directory
        with tempfile.TemporaryDirectory(dir=cache(), prefix="installing-") as scratch:
            project = Path(scratch) / "project"
            project.mkdir()
            (project / "package.json").write_text(json.dumps({"private": True}))
            done = subprocess.run(
                [npm, "install", "--no-audit", "--no-fund", spec],
                capture_output=True,
                text=True,
                check=False,
                cwd=project,
                timeout=INSTALL_TIMEOUT,
            )
            require_success(done)
            directory.parent.mkdir(parents=True, exist_ok=True)
            project.rename(directory)  # at once, so that what exists is complete
    return directory


def require_success(done: subprocess.CompletedProcess[str]) -> None:
    """Raise with all output if a program failed."""
    if done.returncode != 0:
        message = f"{done.args!r} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
        raise AssertionError(message)
