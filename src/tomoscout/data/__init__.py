"""Copick projects: reading and writing, the inventory of their content, coordinates, labels."""
