"""Trained networks on disk: model folders, what a fine-tuning starts from, models of octopi."""
