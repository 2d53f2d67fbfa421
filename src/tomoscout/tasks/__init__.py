"""What can be learnt: a room for each task."""
