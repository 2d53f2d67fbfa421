"""The picking task: particles found by their centres, and continuous classes found by their voxels."""
