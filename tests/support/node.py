"""The real Node package, installed once per machine and run as a black box."""

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pytest

from tests.support import npm
from tests.support.processes import Process, Processes, clean_environment

LATEST = "0.18.0"
NEEDED_NODE = (22, 18)

BOTH_INSTALLERS = pytest.mark.parametrize("installer", ["node", "python"])
"""Run the test on a schema that Node has installed and on one of ours."""
WITHOUT_SIDE_SCHEMA = pytest.mark.parametrize("installer", ["python"])
"""Run the test where no worker of ours has been yet."""


class Node:
    """Runs scripts and commands with a chosen version of graphile-worker."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    @cached_property
    def binary(self) -> str:
        """A node that is new enough: the system's, else one from a package that carries it."""
        system = shutil.which("node")
        if system is not None:
            told = subprocess.run([system, "--version"], capture_output=True, text=True, check=True)
            version = re.match(r"v(\d+)\.(\d+)", told.stdout)
            if version is not None and (int(version[1]), int(version[2])) >= NEEDED_NODE:
                return system
        machine = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(
            platform.machine().lower(), platform.machine().lower()
        )
        package = f"node-{sys.platform}-{machine}"
        directory = npm.install(f"{package}@{NEEDED_NODE[0]}")
        return str(directory / "node_modules" / package / "bin" / "node")

    def package(self, version: str = LATEST) -> Path:
        """The directory whose `node_modules` holds that version of graphile-worker."""
        return npm.install(f"graphile-worker@{version}")

    def run(
        self,
        version: str,
        js_source: str,
        *args: str,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> str:
        """Run the text of an ES module and return what it wrote to its standard output.

        The module can import "graphile-worker" and "pg"; `args` start at `process.argv[2]`.
        """
        command = [self.binary, "--input-type=module", "-", *args]
        done = self._call(version, command, js_source, env, timeout)
        npm.require_success(done)
        return done.stdout

    def start(
        self, version: str, js_source: str, *args: str, env: Mapping[str, str] | None = None
    ) -> Process:
        """Start the text of an ES module; it is killed when the test ends."""
        command = [self.binary, "--input-type=module", "-", *args]
        return self._processes.start(command, env=env, cwd=self.package(version), stdin=js_source)

    def cli(
        self,
        version: str,
        *args: str,
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run the `graphile-worker` command; with `check`, it must exit with 0."""
        done = self._call(version, [*self._cli(version), *args], "", env, timeout)
        if check:
            npm.require_success(done)
        return done

    def start_cli(self, version: str, *args: str, env: Mapping[str, str] | None = None) -> Process:
        """Start the `graphile-worker` command; it is killed when the test ends."""
        command = [*self._cli(version), *args]
        return self._processes.start(command, env=env, cwd=self.package(version))

    def _cli(self, version: str) -> list[str]:
        program = self.package(version) / "node_modules" / ".bin" / "graphile-worker"
        return [self.binary, str(program.resolve())]

    def _call(
        self,
        version: str,
        command: list[str],
        stdin: str,
        env: Mapping[str, str] | None,
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.package(version),
            env=clean_environment(env),
            timeout=timeout,
        )
