"""How to talk to a PostgreSQL server; knows nothing of jobs."""
