"""What settings are called in Stable-Baselines3 and RLlib, for who comes from there. Used in messages alone.

A name means the first of its keys that the algorithm has; what is in brackets is said of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

_STEPS = "rollout.shards x rollout.envs_per_shard x rollout.steps"
_RATIO = "replay.samples_per_insert (batch size x updates per env step)"
_NETWORK = "algorithm.hidden, algorithm.activation and algorithm.network"
SB3: Mapping[str, Sequence[str]] = {
    "activation_fn": ["algorithm.activation"],
    "batch_size": ["algorithm.minibatch_size"],
    "clip_range": ["algorithm.clip"],
    "clip_range_vf": ["algorithm.value_clip"],
    "deterministic": ["evaluation.greedy"],
    "ent_coef": ["algorithm.entropy_coef"],
    "env_id": ["env.id"],
    "env_kwargs": ["env.kwargs"],
    "env_wrapper": ["env.wrappers"],
    "eval_freq": ["evaluation.every (in iterations)"],
    "exploration_final_eps": ["algorithm.epsilon.end"],
    "exploration_fraction": ["algorithm.epsilon.over (in env steps)"],
    "exploration_initial_eps": ["algorithm.epsilon.start"],
    "features_extractor_class": ["algorithm.network"],
    "gradient_steps": [_RATIO],
    "learning_rate": ["algorithm.lr"],
    "learning_starts": ["replay.start"],
    "n_envs": ["rollout.shards x rollout.envs_per_shard"],
    "n_epochs": ["algorithm.epochs"],
    "n_eval_episodes": ["evaluation.episodes"],
    "n_steps": ["algorithm.n_step", "rollout.steps"],
    "n_timesteps": ["stop.env_steps"],
    "net_arch": ["algorithm.hidden"],
    "norm_obs": ["normalize.obs"],
    "norm_reward": ["normalize.reward"],
    "optimizer_class": ["algorithm.optimizer"],
    "policy": ["algorithm.body"],
    "policy_kwargs": [_NETWORK],
    "buffer_size": ["replay.capacity"],
    "replay_buffer_kwargs": ["replay"],
    "save_freq": ["checkpoint.every (in iterations)"],
    "share_features_extractor": ["algorithm.shared_body"],
    "squash_output": ["algorithm.squash"],
    "target_update_interval": ["algorithm.target_every (in updates)"],
    "tensorboard_log": ["track.uri"],
    "total_timesteps": ["stop.env_steps"],
    "train_freq": [_RATIO],
    "use_rms_prop": ["algorithm.optimizer (adam or rmsprop)"],
    "vf_coef": ["algorithm.value_coef"],
}
RLLIB: Mapping[str, Sequence[str]] = {
    "checkpoint_freq": ["checkpoint.every"],
    "clip_param": ["algorithm.clip"],
    "conv_filters": ["algorithm.body"],
    "custom_model": ["algorithm.network"],
    "double_q": ["algorithm.double"],
    "entropy_coeff": ["algorithm.entropy_coef"],
    "env_config": ["env.kwargs"],
    "episode_reward_mean": ["stop.return_mean"],
    "epsilon_timesteps": ["algorithm.epsilon.over"],
    "evaluation_duration": ["evaluation.episodes"],
    "evaluation_interval": ["evaluation.every"],
    "fcnet_activation": ["algorithm.activation"],
    "fcnet_hiddens": ["algorithm.hidden"],
    "final_epsilon": ["algorithm.epsilon.end"],
    "grad_clip": ["algorithm.max_grad_norm"],
    "horizon": ["env.max_episode_steps"],
    "initial_epsilon": ["algorithm.epsilon.start"],
    "kl_target": ["algorithm.adaptive_kl"],
    "lambda": ["algorithm.gae_lambda", "algorithm.trace"],
    "lambda_": ["algorithm.gae_lambda", "algorithm.trace"],
    "model": [_NETWORK],
    "num_env_runners": ["cluster.runners"],
    "num_envs_per_env_runner": ["rollout.envs_per_shard"],
    "num_envs_per_worker": ["rollout.envs_per_shard"],
    "num_epochs": ["algorithm.epochs"],
    "num_gpus": ["learner.device"],
    "num_gpus_per_learner": ["learner.device"],
    "num_learners": ["learner.count"],
    "num_rollout_workers": ["cluster.runners"],
    "num_sgd_iter": ["algorithm.epochs"],
    "num_steps_sampled_before_learning_starts": ["replay.start"],
    "num_to_keep": ["checkpoint.keep"],
    "num_workers": ["cluster.runners"],
    "observation_filter": ["normalize.obs"],
    "replay_buffer_config": ["replay"],
    "rollout_fragment_length": ["rollout.steps"],
    "sgd_minibatch_size": ["algorithm.minibatch_size"],
    "target_network_update_freq": ["algorithm.target_every (in updates)"],
    "train_batch_size": ["algorithm.batch_size", _STEPS],
    "train_batch_size_per_learner": ["algorithm.batch_size", _STEPS],
    "training_intensity": [_RATIO],
    "vf_clip_param": ["algorithm.value_clip"],
    "vf_loss_coeff": ["algorithm.value_coef"],
    "vf_share_layers": ["algorithm.shared_body"],
}


def keys_of(meant: str) -> list[str]:
    """The keys that a text of the tables names."""
    return re.findall(r"[a-z_.]+", meant.partition(" (")[0].replace(" x ", " ").replace(" and ", " "))


def elsewhere(name: str, algorithm: str, keys: Collection[str]) -> str:
    """' It is ...' where a run with the algorithm, which has the dotted `keys`, has what `name` means; else ''."""
    own = [key for key in keys if key.rpartition(".")[2] == name and not any(k.startswith(f"{key}.") for k in keys)]
    if own:
        return f" It is {' or '.join(own)}."
    for library, names in (("SB3", SB3), ("RLlib", RLLIB)):
        if name in names:
            there = [meant for meant in names[name] if all(key in keys for key in keys_of(meant))]
            if there:
                return f" {library}'s {name} is {there[0]}."
            return f" {library}'s {name} is {names[name][0]}, which {algorithm} has not."
    return ""
