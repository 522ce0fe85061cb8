"""Choices as data: presets of the optimizer."""
