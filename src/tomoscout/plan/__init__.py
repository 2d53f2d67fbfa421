"""What follows from configuration and inventory, before anything large is read. Nothing slow is imported."""
