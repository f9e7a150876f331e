"""Measurements against Graphile Worker for Node and others, all sides in turn in the same run."""
