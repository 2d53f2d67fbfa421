"""Phantoms: copick projects of simulated tomograms with known particles and membranes (ground truth)."""
