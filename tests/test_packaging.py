"""What is built is complete: the wheel, made from the sdist, carries the migrations."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPORT = """
import asyncio, pathlib, sys
import graphile_worker_py

asyncio.run(graphile_worker_py.run_migrations(sys.argv[1]))
print(pathlib.Path(graphile_worker_py.__file__).parent)
"""


def build(kind: str, source: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind]
    done = subprocess.run(
        [*command, "--directory", str(target)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that a source distribution of this checkout makes."""
    work = tmp_path_factory.mktemp("package")
    with tarfile.open(build("sdist", ROOT, work / "sdist")) as archive:
        # Python 3.11.3 and older have no filters, newer ones want one to be chosen.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(work / "source")
    (source,) = (work / "source").iterdir()
    return build("wheel", source, work / "wheel")


def test_wheel_carries_every_migration_and_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "graphile_worker_py"
    modules = {path.relative_to(ROOT).as_posix() for path in package.rglob("*.py")}
    migrations = {
        f"graphile_worker_py/migrations/{path.name}" for path in (ROOT / "sql").glob("*.sql")
    }
    assert "graphile_worker_py/migrations/000020.sql" in migrations
    web = package / "web"
    pages = {
        file.relative_to(ROOT).as_posix()
        for folder in ("static", "templates")
        for file in (web / folder).iterdir()
    }
    assert names == modules | migrations | pages | {"graphile_worker_py/py.typed"}


def test_wheel_gives_the_command_and_the_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        (scripts,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        told = archive.read(metadata).decode()
        commands = archive.read(scripts).decode()
    assert "graphile-worker-py = graphile_worker_py.cli.main:main" in commands
    assert {"Name: graphile-worker-py", "Provides-Extra: embedded"} <= set(told.splitlines())


def test_unpacked_wheel_installs_the_schema(wheel: Path, empty_dsn: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", REPORT, empty_dsn],
        cwd=tmp_path.parent,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "graphile_worker_py"
