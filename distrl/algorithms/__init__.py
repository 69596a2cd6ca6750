"""One file an algorithm. The registry of names is `distrl.config.ALGORITHMS`.

A module here holds `Settings` (its part of a config), `make_policy(settings, info)` (what acts, in NumPy; raises
`UserError` for spaces that the algorithm cannot take), `initial_weights(settings, policy, seed)` (of version 0),
`make(settings, policy, seed, device)` (what learns) and `NEEDS_TORCH`: whether it learns with torch; where not, `device`
is None and nothing in a run imports torch. Importing a module here does not import torch; `make` does.
"""
