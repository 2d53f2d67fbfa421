"""Decisions that follow from configuration and inventory, made without reading volumes. Imports no slow library."""
