"""A program of tests: greenlets in place of threads enter SyncWorkerUtils at once."""

import gevent.monkey

gevent.monkey.patch_all()

import sys  # noqa: E402  # what is imported before is not patched
import threading  # noqa: E402

from graphile_worker_py import SyncWorkerUtils  # noqa: E402


def main(dsn: str) -> None:
    """Print what each of them says."""

    def enter(number: int) -> None:
        try:
            with SyncWorkerUtils(dsn) as utils:
                said = utils.add_job("work", number).payload == number
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(said, flush=True)

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
