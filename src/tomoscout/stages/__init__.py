"""The stages of the workflow: a module for each rule."""
