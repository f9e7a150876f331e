"""The logs and probes of a worker, for people and machines that watch it."""
