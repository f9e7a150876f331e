"""Measurements against Graphile Worker for Node and others, all sides in turn in the same run.

`python -m benchmarks` installs and starts what it needs. `measures` says what is measured, `sides`
who is, `lab` gives them databases and processes, `report` makes tables of what came out and `plots`
pictures.
"""
