"""The id of Flappy Bird from pixels. It is registered while gymnasium is only just imported, so this file imports nothing."""

from __future__ import annotations

ENV_ID = "distrl/FlappyBirdPixels-v0"
MAX_EPISODE_STEPS = 10_000  # frames, some 265 pipes; the package itself never ends a good game


def register() -> None:
    """Make `gymnasium.make("distrl/FlappyBirdPixels-v0")` work; calling it again changes nothing."""
    import gymnasium

    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            ENV_ID, entry_point="distrl.envs.flappy:FlappyBirdPixels", max_episode_steps=MAX_EPISODE_STEPS
        )
