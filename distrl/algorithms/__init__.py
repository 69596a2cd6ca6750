"""One file an algorithm. What each of them offers, and where they are named: distrl.registry."""
