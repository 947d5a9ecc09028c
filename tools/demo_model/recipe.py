"""Recipe of the embedded backbone: its shape, learning rates, and the mixture of its batches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medusa.demo.tasks import CATEGORIES

COPYING = ("extraction", "tables")
"""Categories whose answers copy much of the prompt's text but no word of its question."""


@dataclass(frozen=True)
class Mixture:
    """Composition of the batches of tasks in one part of the training.

    Variations of extraction tasks are those of the module `variation`.

    Attributes:
        shares: share of each category among the tasks.
        varied: share of tasks with invented words in place of names and goods.
        pieces: build half of the invented words from vocabulary entries, so that all entries are
            trained.
        anew: share of varied extraction tasks whose text is composed fact by fact.
        reworded: share of varied extraction tasks whose text is shuffled and thinned.
        strange: share of the facts in composed texts whose wording does not name the fact.
        retold: share of varied extraction tasks whose text uses templates of `tellings.txt`.
        recombined: share of varied extraction tasks whose text combines sentences of templates.
        reasked: share of varied `COPYING` tasks with some words of the question replaced.
        selected: probability that a tables task that asks for all columns is skipped, which
            raises the share of those that ask for some.
        repeated: share of varied tables tasks in which many values are the same few words.
        equations: share of rows that hold equations only.
        drill: share of rows that belong to the copying drill.
        conversations: share of rows that hold two or three tasks, so that the model learns to
            continue a chat.
    """

    shares: dict[str, float]
    varied: float = 0.7
    pieces: bool = False
    anew: float = 0.35
    reworded: float = 0.35
    strange: float = 0.0
    retold: float = 0.0
    recombined: float = 0.0
    reasked: float = 0.0
    selected: float = 0.0
    repeated: float = 0.0
    equations: float = 0.06
    drill: float = 0.0
    conversations: float = 0.06


FORM = Mixture(
    {"extraction": 0.26, "tables": 0.26, "sql": 0.12, "math": 0.14, "code": 0.14, "writing": 0.08},
)
"""Steps 0 to 2,250: the form of the answers."""
READING = Mixture(
    {"extraction": 0.31, "tables": 0.25, "sql": 0.10, "math": 0.17, "code": 0.11, "writing": 0.06},
    varied=0.8,
    pieces=True,
    anew=0.65,
    reworded=0.15,
    equations=0.10,
    drill=0.04,
    conversations=0.05,
)
"""More texts composed fact by fact, words built from vocabulary entries, more equations."""
INFERRING = replace(READING, anew=0.6, reworded=0.25, strange=0.2)
"""Texts whose wording does not name every fact; its form and the other facts tell which it is."""
SELECTING = replace(INFERRING, anew=0.35, reworded=0.15, strange=0.15, retold=0.35, selected=0.6)
"""More templates for texts, and more tables tasks that leave a column out."""
REPEATING = replace(SELECTING, repeated=0.4)
"""Tables in which the same first name or city stands in several rows."""
HARDEST = replace(
    REPEATING,
    shares={
        "extraction": 0.40,
        "tables": 0.25,
        "sql": 0.08,
        "math": 0.15,
        "code": 0.07,
        "writing": 0.05,
    },
    varied=0.9,
    anew=0.4,
)
"""More of the tasks with the lowest accuracy at this point."""
RECOMBINING = replace(HARDEST, anew=0.3, retold=0.1, reworded=0.1, recombined=0.4, strange=0.25)
"""Texts recombined from sentences of many templates."""
RETELLING = replace(
    RECOMBINING,
    shares={
        "extraction": 0.42,
        "tables": 0.28,
        "sql": 0.07,
        "math": 0.13,
        "code": 0.06,
        "writing": 0.04,
    },
    anew=0.12,
    retold=0.48,
    reworded=0.05,
    recombined=0.25,
    strange=0.2,
)
"""Mostly templates of `tellings.txt`, which held a hundred of each kind at this point."""
LAST = replace(
    RETELLING,
    shares={
        "extraction": 0.42,
        "tables": 0.20,
        "sql": 0.08,
        "math": 0.14,
        "code": 0.10,
        "writing": 0.06,
    },
)
"""Three hundred templates of each kind, and again more of the other tasks."""
REASKING = replace(
    LAST,
    shares={
        "extraction": 0.42,
        "tables": 0.22,
        "sql": 0.08,
        "math": 0.12,
        "code": 0.10,
        "writing": 0.06,
    },
    reasked=0.5,
)
"""Questions in other words, so that the model does not copy from the question."""
EXTRACTING = replace(
    REASKING,
    shares={
        "extraction": 0.62,
        "tables": 0.14,
        "sql": 0.05,
        "math": 0.07,
        "code": 0.06,
        "writing": 0.06,
    },
)
"""Again more of the tasks with the lowest accuracy at this point."""
EVEN = replace(REASKING, shares=dict.fromkeys(CATEGORIES, 1 / len(CATEGORIES)), varied=0.6)
"""Mixture for the heads: an equal share of each category, with many words unseen in training."""


@dataclass(frozen=True)
class Foresight:
    """Joint training of backbone and heads in the last steps (equation 2).

    Attributes:
        begin: step from which the heads train; until the first of `weights` without any gradient
            to the backbone.
        weights: values of lambda_0 in equation 2, each with the step from which it holds.
        decay: lambda_k = decay^k of equation 1.
        num_heads: number of heads.
        layers: residual layers of each head; all heads share the lm_head.
        lr: peak learning rate of the heads' AdamW.
    """

    begin: int = 14950
    weights: tuple[tuple[int, float], ...] = ((15050, 0.03), (15850, 0.1), (17350, 0.02))
    decay: float = 0.8
    num_heads: int = 5
    layers: int = 3
    lr: float = 6e-3

    def weight(self, step: int) -> float:
        """Return lambda_0 at a step; 0 before the backbone takes gradients from the heads."""
        return ([0.0] + [weight for begin, weight in self.weights if step >= begin])[-1]


@dataclass(frozen=True)
class BackboneRecipe:
    """Everything that decides the weights, apart from the task generator."""

    seed: int = 0
    vocab_size: int = 2048
    hidden_size: int = 256
    layers: int = 6
    intermediate_size: int = 704
    context: int = 2048
    batch_tokens: int = 6144
    rates: tuple[tuple[int, float], ...] = (
        (0, 0.01),
        (100, 1.0),
        (4080, 1.0),
        (4950, 0.680),
        (7035, 0.680),
        (7250, 0.638),
        (7303, 0.638),
        (10900, 0.0),
        (11000, 0.35),
        (13900, 0.0),
        (13950, 0.3),
        (14950, 0.0),
        (15000, 0.3),
        (15850, 0.0),
        (15900, 0.3),
        (17350, 0.0),
        (17400, 0.3),
        (18850, 0.0),
        (18900, 0.2),
        (19400, 0.0),
    )
    """Steps, each with its share of the peak learning rate; interpolated, the last one ends."""
    drill_steps: int = 650
    """Steps of the copying drill, which comes first."""
    equation_steps: tuple[int, int] = (1250, 1400)
    """First step of the part with equations only, and the step after its last."""
    muon_lr: float = 0.01
    adam_lr: float = 3e-3
    weight_decay: float = 0.01
    mixtures: tuple[tuple[int, Mixture], ...] = (
        (0, FORM),
        (2250, READING),
        (2800, INFERRING),
        (3150, SELECTING),
        (4050, REPEATING),
        (4950, HARDEST),
        (6200, RECOMBINING),
        (7250, RETELLING),
        (10900, LAST),
        (13900, REASKING),
        (18850, EXTRACTING),
    )
    """Each mixture, with the step from which it is used."""
    foresight: Foresight = Foresight()

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return self.rates[-1][0]

    def rate(self, step: int) -> float:
        """Return the learning rate at a step as a share of its peak."""
        steps, shares = zip(*self.rates, strict=True)
        return float(np.interp(step, steps, shares))
