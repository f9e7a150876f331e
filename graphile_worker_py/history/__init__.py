"""History: what became of jobs that ended. A leaf, which a runner adds as a plugin."""
