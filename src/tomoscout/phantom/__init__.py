"""A copick project whose truth is known: simulated tomograms, their particles and membranes."""
