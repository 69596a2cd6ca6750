"""Looking at environments, the machine, speed and the promise."""
