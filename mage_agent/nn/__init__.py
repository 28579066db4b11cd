"""Layers and units that every agent can use."""
