"""Acting: what a runner loads. NumPy alone."""
