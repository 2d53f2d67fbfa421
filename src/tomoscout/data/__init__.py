"""What is read and written: copick projects, their inventory, coordinates."""
