"""`python -m graphile_worker_py`: the command line."""

from graphile_worker_py.cli.main import main

if __name__ == "__main__":
    main()
