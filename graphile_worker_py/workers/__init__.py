"""One worker pool at work."""
