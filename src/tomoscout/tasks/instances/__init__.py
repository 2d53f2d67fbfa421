"""Instances: each object of an image or a volume gets a number of its own."""
