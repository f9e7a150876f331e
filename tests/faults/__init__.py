"""What happens to jobs when processes die, stand still or lose their database."""
