"""Picking: particles by their centres, and other classes by their voxels."""
