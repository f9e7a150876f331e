"""Many worker pools, and what happens when one of them dies."""
