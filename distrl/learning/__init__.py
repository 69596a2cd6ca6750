"""Learning: what a learner loads. torch."""
