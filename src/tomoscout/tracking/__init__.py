"""Trainings recorded in MLflow.

There is one way to record: `sync` reads a model folder and adds to the store what is not there yet. A training under
way is recorded in the same manner by a child process, which `Tracker` starts: a store that hangs, is locked or full,
or an MLflow that cannot be imported, stays in the child and never reaches the training. The store is only a copy:
late or lost, it is made again from the folders by `tomoscout track`.
"""
