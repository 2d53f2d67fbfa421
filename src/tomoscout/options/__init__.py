"""The options: how they are declared, read, checked and documented. Nothing slow is imported."""
