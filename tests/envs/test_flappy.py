"""FlappyBirdPixels against the package's own pictures, converted plainly."""

import copy
import os
import pickle
import subprocess
import sys
import time

import cv2
import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec, registry
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from distrl.envs.flappy import FlappyBirdPixels, check_package
from distrl.envs.flappy_id import ENV_ID, MAX_EPISODE_STEPS, register

flappy_bird_gymnasium = pytest.importorskip("flappy_bird_gymnasium")


def plain_env(**kwargs):
    return flappy_bird_gymnasium.FlappyBirdEnv(use_lidar=False, render_mode="rgb_array", **kwargs)


def plain_frame(env) -> NDArray[np.uint8]:
    gray = cv2.cvtColor(env.render(), cv2.COLOR_RGB2GRAY)
    return cv2.resize(gray, (84, 84), interpolation=cv2.INTER_AREA)


def scripted(features) -> int:
    """Flap once the bird, one frame on, would sink to 8 px above the lower pipe ahead: passes dozens.

    The features are x, upper edge and lower edge of three pipes, then the bird's y, speed and rotation.
    """
    ahead = 2 if features[0] * 288 + 52 > 57 else 5
    return int(features[9] * 512 + 24 + max(features[10] * 10, 0) > features[ahead] * 512 - 8)


def rollout(env, seed: int, steps: int = 40) -> list[NDArray[np.uint8]]:
    """Observations of a game that flaps now and then, from reset on; it may run past the bird's death."""
    actions = np.random.default_rng(seed).random(steps) < 0.08
    return [env.reset(seed=seed)[0], *(env.step(int(action))[0] for action in actions)]


def run_python(code: str) -> list[str]:
    """The words that a fresh interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return run.stdout.split()


def assert_same(left, right) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("seed", "steps", "kwargs"),
    [
        (0, 300, {}),
        (1, 300, {}),
        (2, 120, {"background": "night", "bird_color": "blue", "pipe_color": "red"}),
        (3, 80, {"background": None, "bird_color": "red"}),
        (4, 110, {"pipe_gap": 250}),
    ],
)
def test_whole_games_equal_the_package(seed, steps, kwargs):
    """Every frame, stack, reward and flag of a game that passes pipes, then falls to the ground."""
    env, plain = FlappyBirdPixels(**kwargs), plain_env(**kwargs)
    observation, info = env.reset(seed=seed)
    features, plain_info = plain.reset(seed=seed)
    frames = [plain_frame(plain)] * 4
    done = False
    for step in range(steps + 100):
        np.testing.assert_array_equal(observation, np.stack(frames), err_msg=f"frame {step}")
        assert info == plain_info
        if done:
            break
        action = scripted(features) if step < steps else 0
        observation, *outcome, info = env.step(action)
        features, *plain_outcome, plain_info = plain.step(action)
        assert outcome == plain_outcome
        frames = [*frames[1:], plain_frame(plain)]
        done = outcome[1]
    assert done
    assert steps < 300 or info["score"] > 5


@pytest.mark.parametrize("flap_share", [0.08, 0.9])
def test_crashes_and_flights_above_the_screen_equal_the_package(flap_share):
    rng = np.random.default_rng(0)
    env, plain = FlappyBirdPixels(), plain_env()
    env.reset(seed=5)
    plain.reset(seed=5)
    for _ in range(75):  # on past a crash: birds before pipes and below the ground's edge
        action = int(rng.random() < flap_share)
        observation = env.step(action)[0]
        plain.step(action)
        np.testing.assert_array_equal(observation[-1], plain_frame(plain))


def test_used_env_resets_like_a_fresh_one():
    used = FlappyBirdPixels()
    rollout(used, seed=11, steps=35)  # leaves the ground and the wings amid their cycles
    assert_same(rollout(used, seed=7), rollout(FlappyBirdPixels(), seed=7))


def test_stack_holds_the_last_four_frames_and_is_the_callers():
    env = FlappyBirdPixels()
    first, _ = env.reset(seed=0)
    assert first.shape == (4, 84, 84)
    assert first.dtype == np.uint8
    assert all(np.array_equal(frame, first[0]) for frame in first)
    frames = [first[-1].copy()] * 4
    for action in (0, 1, 0, 0, 1, 0):
        observation, *_ = env.step(action)
        frames = [*frames[1:], observation[-1].copy()]
        assert not np.array_equal(frames[-1], frames[-2])
        assert_same(observation, frames)
        assert env.observation_space.contains(observation)
        observation[:] = 0  # must not reach the env's own stack


def test_seed_and_actions_determine_the_pixels_in_another_process():
    code = (
        "import hashlib, numpy as np; from distrl.envs.flappy import FlappyBirdPixels as F\n"
        "env = F(); digest = hashlib.sha256(env.reset(seed=3)[0])\n"
        "for action in [0, 1, 0, 0, 0] * 8: digest.update(env.step(action)[0])\n"
        "print(digest.hexdigest())"
    )
    assert run_python(code)[-1] == run_python(code)[-1]


def test_unseeded_resets_continue_the_envs_own_stream():
    def games(env):
        env.reset(seed=1)
        return [rollout_unseeded(env) for _ in range(4)]

    def rollout_unseeded(env):
        env.reset()
        for _ in range(30):
            observation = env.step(0)[0]  # the first pipe shows from frame 1 on
        return observation

    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = games(FlappyBirdPixels())
    assert_same(first, games(FlappyBirdPixels()))
    assert any(not np.array_equal(first[0], other) for other in first[1:])
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002  (global stream: left alone)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])  # noqa: S301
def test_copies_play_on_alone(duplicate):
    env = FlappyBirdPixels()
    rollout(env, seed=2, steps=20)
    twin = duplicate(env)
    played = [env.step(int(k % 15 == 0))[0] for k in range(60)]
    assert_same(played, [twin.step(int(k % 15 == 0))[0] for k in range(60)])


def test_rgb_array_renders_the_packages_picture_and_changes_no_observation():
    env, plain = FlappyBirdPixels(render_mode="rgb_array"), plain_env()
    env.reset(seed=0)
    plain.reset(seed=0)
    pictures = []
    for action in (1, 0, 0):
        env.step(action)
        plain.step(action)
        pictures.append(env.render())
        assert pictures[-1].shape == (512, 288, 3)
        assert pictures[-1].flags.c_contiguous
    np.testing.assert_array_equal(pictures[-1], plain.render())
    assert not np.array_equal(pictures[0], pictures[1])  # each picture is its own array
    assert_same(rollout(env, seed=7), rollout(FlappyBirdPixels(), seed=7))
    env.close()


def test_human_mode_changes_no_observation(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = FlappyBirdPixels(render_mode="human")
    seen = rollout(env, seed=7, steps=6)
    assert env.render() is None
    env.close()
    assert_same(seen, rollout(FlappyBirdPixels(), seed=7, steps=6))


def test_human_mode_falls_back_to_no_window_only_without_a_display(monkeypatch):
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "")  # registers the name for undoing what the env sets
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")
    FlappyBirdPixels()
    FlappyBirdPixels(render_mode="rgb_array")
    assert "SDL_VIDEODRIVER" not in os.environ
    monkeypatch.setenv("DISPLAY", ":0")
    FlappyBirdPixels(render_mode="human")
    assert "SDL_VIDEODRIVER" not in os.environ
    monkeypatch.delenv("DISPLAY")
    FlappyBirdPixels(render_mode="human")
    assert os.environ["SDL_VIDEODRIVER"] == "dummy"


def test_render_without_a_mode_warns():
    with pytest.warns(UserWarning, match="render_mode"):
        assert FlappyBirdPixels().render() is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"use_lidar": True}, "use_lidar"),
        ({"audio_on": True}, "audio_on"),
        ({"screen_size": (100, 100)}, "screen_size"),
        ({"background": "dusk"}, "background"),
        ({"bird_color": "green"}, "bird_color"),
        ({"pipe_color": "blue"}, "pipe_color"),
        ({"pipe_gap": -1}, "pipe_gap"),
        ({"render_mode": "ansi"}, "render_mode"),
    ],
)
def test_refuses_what_it_cannot_show(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FlappyBirdPixels(**kwargs)


def test_other_arguments_reach_the_package():
    FlappyBirdPixels(use_lidar=False, audio_on=False, screen_size=(288, 512), normalize_obs=False)
    with pytest.raises(TypeError, match="pipe_gab"):
        FlappyBirdPixels(pipe_gab=120)
    env, plain = FlappyBirdPixels(score_limit=1), plain_env(score_limit=1)
    env.reset(seed=0)
    features, _ = plain.reset(seed=0)
    truncated = False
    while not truncated:
        action = scripted(features)
        features, *_ = plain.step(action)
        _, reward, terminated, truncated, info = env.step(action)
        assert not terminated
    assert (reward, info["score"]) == (1.0, 1)


def test_misuse_is_refused():
    env = FlappyBirdPixels()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action"):
        env.step(2)


def test_registration_and_env_checker(monkeypatch):
    monkeypatch.delitem(registry, ENV_ID, raising=False)
    register()
    spec = registry[ENV_ID]
    register()
    assert registry[ENV_ID] is spec
    env = gymnasium.make(ENV_ID, pipe_gap=120)
    assert env.spec.max_episode_steps == MAX_EPISODE_STEPS
    check_env(env.unwrapped, skip_render_check=True)
    short = gymnasium.make(ENV_ID, max_episode_steps=3)
    short.reset(seed=0)
    assert [short.step(0)[3] for _ in range(3)] == [False, False, True]


def test_refuses_the_other_flappy_bird(monkeypatch):
    check_package()
    other = EnvSpec("FlappyBird-v0", entry_point="flappy_bird_env.flappy_bird_env:FlappyBirdEnv")
    monkeypatch.setitem(registry, "FlappyBird-v0", other)
    with pytest.raises(ValueError, match=r"flappy-bird-env.*flappy-bird-gymnasium.*pip"):
        FlappyBirdPixels()


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flappy_bird_gymnasium", None)
    with pytest.raises(ImportError, match="flappy-bird-gymnasium, not flappy-bird-env"):
        FlappyBirdPixels()


def test_importing_the_module_is_cheap():
    heavy = {"cv2", "pygame", "flappy_bird_gymnasium"}
    code = f"import sys, distrl.envs.flappy; print(*{heavy} & sys.modules.keys())"
    assert not run_python(code)


def test_far_faster_than_the_package():
    """About 40 times, measured in turns; 10 leaves room for a busy machine."""
    env, plain = FlappyBirdPixels(), plain_env()
    fast, slow = [], []
    for seed in (0, 0, 1, 1, 2, 2):
        env.reset(seed=seed)
        plain.reset(seed=seed)
        start = time.perf_counter()
        for _ in range(50):
            env.step(0)
        fast.append((time.perf_counter() - start) / 50)
        start = time.perf_counter()
        for _ in range(5):
            plain.step(0)
            plain_frame(plain)
        slow.append((time.perf_counter() - start) / 5)
    assert min(slow) > 10 * min(fast)


def test_a_system_without_the_library_of_sounds_is_told() -> None:
    code = """
import sys
sys.modules["pygame.mixer"] = None  # what pygame makes of a library that is missing
from distrl.envs.flappy import check_package
try:
    check_package()
except ImportError as error:
    print(error)
"""
    assert {"sounds,", "libglib2.0-0`."} <= set(run_python(code))
