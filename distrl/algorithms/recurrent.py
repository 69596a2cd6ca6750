"""Actor-critics that remember: sequences are learnt from whole, each with its true initial state.

A sequence is one env copy's T steps of an iteration. It begins with what the policy that acted remembered there, which
came in the fragment, and within it the memory is zero again where an episode begins, as it was for the runner. Actor and
critic share it. Gradients go back through time to the sequence's first step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from distrl.algorithms.actor_critic import AT_ONCE, ActorCritic, ActorCriticBatch
from distrl.fragments import unstacked
from distrl.types import Array, Fragment

if TYPE_CHECKING:
    from torch import Tensor

    from distrl.learning.distributions import Bound
    from distrl.learning.gradients import Pull
    from distrl.learning.networks import RecurrentNetwork


@dataclass
class Sequences:
    """What was seen in an iteration: R = (T + 1) C rows, step by step, of C env copies, and E last ones of episodes.

    A row number stands for its observation wherever an actor-critic is given one.
    """

    obs: Tensor  # [R + E, ...]
    shown: Tensor  # [R + E, H]: what heads see behind each, by the weights that the update begins with
    first: Tensor  # [C, M]: what is remembered before the first step, by the weights that acted
    begins: Tensor  # [T + 1, C] bool: the step is the first of an episode that begins within


class SequenceBatch(ActorCriticBatch):
    def order(self, rng: np.random.Generator, size: int) -> Array:
        """Minibatches of whole sequences: each of `size` steps holds its env copies' first steps, then their second ones."""
        steps, copies = self.value.shape
        chosen = rng.permutation(copies).reshape(-1, 1, size // steps)  # [minibatches, 1, sequences]
        rows: Array = chosen + copies * np.arange(steps)[:, None]
        return rows.ravel()


class Recurrent(ActorCritic):
    """Stands before PPO or A2C: what they ask about observations is answered for rows of sequences."""

    sequences: Sequences  # of the iteration that is learnt from

    def batch(self, fragments: list[Fragment]) -> ActorCriticBatch:
        fragments = [unstacked(fragment) for fragment in fragments]
        self.sequences = self.read(fragments)
        steps, copies = self.sequences.begins.shape
        rows, column, end = np.arange(steps * copies).reshape(steps, copies), 0, steps * copies
        numbered = []
        for f in fragments:
            wide, ends = f.ended.shape[1], len(f.final_obs)
            own = rows[:, column : column + wide]
            numbered.append(replace(f, obs=own, final_obs=np.arange(end, end + ends)))
            column, end = column + wide, end + ends
        return SequenceBatch(**vars(super().batch(numbered)))

    def read(self, fragments: list[Fragment]) -> Sequences:
        """What is remembered behind every observation of an iteration, with the weights of now."""
        torch, network = self.torch, cast("RecurrentNetwork", self.actor)
        ended = np.concatenate([f.ended for f in fragments], axis=1)
        begins = self.tensor(np.concatenate([np.zeros_like(ended[:1]), ended]))
        first = self.tensor(np.concatenate([f.extras["memory"][0] for f in fragments]))
        seen = self.tensor(np.concatenate([f.obs for f in fragments], axis=1)).flatten(0, 1)
        final = self.tensor(np.concatenate([f.final_obs for f in fragments]))
        with torch.no_grad():
            features, last = (self.slices.asked(network.body, x, most=AT_ONCE) for x in (seen, final))
            memory = network.memory(features.view(*begins.shape, -1), first, begins)
            by_fragment = torch.split(memory[:-1], [f.ended.shape[1] for f in fragments], dim=1)
            # In the order of the last observations: fragment by fragment, and step by step in each.
            before = torch.cat([m[self.tensor(f.ended)] for m, f in zip(by_fragment, fragments, strict=True)])
            behind = network.memory.step(network.memory.input(last), before)
        shown = network.shown(torch.cat([memory.flatten(0, 1), behind]))
        return Sequences(torch.cat([seen, final]), shown, first, begins)

    def traced(self, obs: Tensor) -> tuple[Bound, Tensor, Pull]:
        """For rows [B] of whole sequences, in the order of `SequenceBatch.order`; else as of ActorCritic."""
        from distrl.learning.gradients import recorded  # here: settings are checked, and runners started, without torch

        def trace(rows: Tensor) -> tuple[Tensor, Tensor, Pull]:
            (outputs, value), pull = recorded(self.outputs, rows)
            return outputs, value, pull

        outputs, value, pull = self.slices.traced(trace, self.parameters.values(), obs, len(self.sequences.begins) - 1)
        return self.policy(obs, outputs), value, pull

    def outputs(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """What the actor gives out, and V(s, h) [B], for such rows."""
        network, known = cast("RecurrentNetwork", self.actor), self.sequences
        steps = len(known.begins) - 1
        chosen = obs.view(steps, -1)[0]  # of step 0 the row is the column
        features = network.body(known.obs.index_select(0, obs)).view(steps, len(chosen), -1)
        memory = network.memory(features, known.first[chosen], known.begins[:-1, chosen]).flatten(0, 1)
        shown = network.shown(memory)
        return network.outputs(shown), self.critic.head(shown).squeeze(1)

    def policy(self, obs: Tensor, outputs: Tensor) -> Bound:
        """pi(.|s, h), by what the actor gives out for rows [B]."""
        return super().policy(self.sequences.obs.index_select(0, obs), outputs)

    def values(self, obs: Tensor) -> Array:
        """V(s, h) [...] for rows [...], with the weights that the update begins with."""
        with self.torch.no_grad():
            value = self.critic.head(self.sequences.shown[obs]).squeeze(-1)
        return self.scale.undo(value.cpu().numpy())

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """log pi(a|s, h) [B] for rows [B], likewise."""
        with self.torch.no_grad():
            return self.policy(obs, self.actor.outputs(self.sequences.shown[obs])).log_prob(action)
