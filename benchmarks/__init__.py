"""Benchmarks against Graphile Worker for Node and other queues, all sides in turn.

`python -m benchmarks` installs and starts what it needs. `measures` has the measurements, `sides`
the packages that are compared, `lab` gives them databases and processes, `report` makes tables of
the figures, and `plots` draws them.
"""
