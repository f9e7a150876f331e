"""Tools for development: an embedded server, a demonstration, a benchmark."""
