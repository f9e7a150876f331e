"""What the tests share: a PostgreSQL server, Node, child processes, waiting."""
