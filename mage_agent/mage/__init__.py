"""MAGE: multi-scale autoregressive generation of trajectories."""
