"""Operating system processes: supervision, signals, cores."""
