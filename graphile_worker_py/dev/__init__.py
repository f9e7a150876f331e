"""Tools for development: an embedded PostgreSQL server."""
