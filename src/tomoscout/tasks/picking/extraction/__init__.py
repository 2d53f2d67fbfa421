"""Particles chosen and oriented by their surroundings: surfaces of segmentations, masks, and other picks."""
