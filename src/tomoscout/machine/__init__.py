"""What any program needs: files written whole, locks, devices, progress, errors. Nothing slow is imported."""
