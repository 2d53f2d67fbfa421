"""Trainings recorded in MLflow.

`store.sync` reads a model folder and adds to the store what it lacks. While a training runs, `Tracker` starts processes
that call `sync`, so a store that hangs, is locked or full, or an MLflow that cannot be imported, does not affect the
training. The store is only a copy: `tomoscout track` makes it again from the model folders.
"""
