"""The page about Django leads from an empty folder to a task that is run."""

import re
import sys
from pathlib import Path

import django
import pytest

from tests.contrib.django_support import TAKE_OLD_SERVERS
from tests.support.processes import Processes

PAGE = Path(__file__).parents[2] / "docs" / "django.md"


# It starts six programs in a row, each with all of Django.
@pytest.mark.timeout(120)
def test_the_project_of_the_page_runs_its_task(
    empty_dsn: str, tmp_path: Path, processes: Processes
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    if django.VERSION >= (6, 0):  # as the page says
        text = text.replace('"django_tasks", ', "").replace(
            "from django_tasks", "from django.tasks"
        )
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    (_, make), (_, settings), (_, tasks), (_, migrate), (_, work), (_, output), (_, utils) = blocks
    assert "import utils" in utils
    bin_dir = Path(sys.executable).parent

    def shell(commands: str) -> list[str]:
        process = processes.start(
            ["bash", "-euc", f'export PATH="{bin_dir}:$PATH"\n{commands}'],
            env={"DATABASE_URL": empty_dsn},
            cwd=tmp_path,
        )
        assert process.wait(timeout=60) == 0, process.stderr
        return process.lines()

    shell(make)
    with (tmp_path / "mysite" / "settings.py").open("a", encoding="utf-8") as file:
        file.write(settings + TAKE_OLD_SERVERS)
    logged = 'import logging\nlogging.getLogger("django.tasks").warning("imported")\n'
    (tmp_path / "shop" / "tasks.py").write_text(tasks + logged, encoding="utf-8")
    shell(migrate)
    add, run = work.strip().split("\n")
    shell(add)
    ran = shell(f"{run} 2>&1")
    assert output.strip() in ran
    assert sum("imported" in line for line in ran) == 1  # not also by Django's default handler
    (tmp_path / "add.py").write_text(utils, encoding="utf-8")
    shell("python manage.py shell < add.py; python manage.py graphile_worker jobs | grep image-7")
