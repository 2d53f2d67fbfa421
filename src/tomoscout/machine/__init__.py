"""General utilities: atomic file writes, locks, GPU leases, devices, messages, progress, errors. Importing them is
fast: none imports torch at the top."""
