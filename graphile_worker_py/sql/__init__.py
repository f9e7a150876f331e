"""Every statement that is sent while jobs are added, run and administered, a family a module."""
