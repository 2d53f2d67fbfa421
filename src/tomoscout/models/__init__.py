"""Trained networks on disk: model folders, bases of fine-tunings, octopi's models."""
