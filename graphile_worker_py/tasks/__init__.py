"""What a task is, and what it is called with."""
