"""Training a network, and applying one to a volume, for any task and any number of spatial dimensions."""
