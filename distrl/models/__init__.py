"""A trained policy, with no training around it."""
