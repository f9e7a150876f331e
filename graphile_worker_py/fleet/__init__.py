"""Many worker pools: their heartbeats, and the recovery of jobs when a pool dies."""
