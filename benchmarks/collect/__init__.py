"""Makers of offline datasets: D4RL's recipes in today's Gymnasium environments, saved by Minari."""
