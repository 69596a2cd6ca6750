"""One file an algorithm. The registry of names is `distrl.config.ALGORITHMS`. Floor 2.

A module here holds `Settings` (its part of a config), `make_policy(settings, info)` (what acts, in NumPy; raises
`UserError` for spaces that the algorithm cannot take), `initial_weights(settings, policy, seed)` (of version 0) and
`make(settings, policy, seed, device)` (what learns). Importing it does not import torch; `make` does.
"""
