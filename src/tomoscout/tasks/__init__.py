"""Learning tasks, a package for each."""
