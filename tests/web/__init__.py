"""HTTP API and pages, called as users call them: over HTTP, and in a real browser."""
