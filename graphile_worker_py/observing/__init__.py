"""What tells people and probes what happens."""
