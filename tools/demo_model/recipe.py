"""What the embedded backbone is trained with: its shape and rates, and what its batches hold at
which step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medusa.demo.tasks import CATEGORIES

COPYING = ("extraction", "tables")
"""Categories whose answers copy most of the prompt, and nothing of the question."""


@dataclass(frozen=True)
class Mixture:
    """What batches of tasks are made of.

    Attributes:
        shares: of each category among the tasks.
        varied: share of tasks with invented words.
        pieces: whether half of the invented words are pieces of the vocabulary, so that none is
            unlearnt.
        anew: share of varied extraction tasks whose text is put together fact by fact.
        reworded: share of varied extraction tasks whose text is shuffled and thinned.
        strange: share of facts in texts made anew that are in words which say nothing about them.
        retold: share of varied extraction tasks told in other templates than their own.
        recombined: share of varied extraction tasks told in sentences of several templates.
        reasked: share of varied `COPYING` tasks in which some words of the question are others.
        selected: how often a tables task for all columns is passed over, so that more ask for some.
        repeated: share of varied tables tasks in which many values are the same few words.
        equations: share of rows that are equations alone.
        drill: share of rows that are the drill's.
        conversations: share of rows that hold two or three tasks, so that a chat can go on after an
            answer.
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
"""First what answers look like."""
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
"""Then more of what needs close reading: texts in words that no template has, words of any pieces,
more sums.
"""
INFERRING = replace(READING, anew=0.6, reworded=0.25, strange=0.2)
"""Texts that do not say of every fact which it is: it is the one that is left, and looks like one.
"""
SELECTING = replace(INFERRING, anew=0.35, reworded=0.15, strange=0.15, retold=0.35, selected=0.6)
"""More ways to tell, and more tables that leave a column out."""
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
"""Mostly what is still wrong."""
RECOMBINING = replace(HARDEST, anew=0.3, retold=0.1, reworded=0.1, recombined=0.4, strange=0.25)
"""Texts made of sentences from many."""
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
"""Mostly the tellings, a hundred of each kind."""
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
"""Three hundred of each, and again more of the other tasks."""
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
"""Words of the question are not words of the text."""
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
"""Once more mostly what is still wrong."""
EVEN = replace(REASKING, shares=dict.fromkeys(CATEGORIES, 1 / len(CATEGORIES)), varied=0.6)
"""For the heads: as many tasks of each category, with words that they have not learnt by heart."""


@dataclass(frozen=True)
class Foresight:
    """The last steps' additional loss, of heads that predict the tokens after the next (eq. 2's).

    Attributes:
        begin: the step from which the heads learn, first on hidden states that take no gradient
            from them.
        weights: lambda_0 of eq. 2, each with the step from which the backbone learns with it.
        decay: lambda_k = decay^k of eq. 1.
        num_heads: how many tokens after the next.
        layers: residual layers of each head; all share the lm_head.
        lr: AdamW's peak for the heads.
    """

    begin: int = 14950
    weights: tuple[tuple[int, float], ...] = ((15050, 0.03), (15850, 0.1), (17350, 0.02))
    decay: float = 0.8
    num_heads: int = 5
    layers: int = 3
    lr: float = 6e-3

    def weight(self, step: int) -> float:
        """lambda_0 of a step, 0 before the backbone learns with the heads."""
        return ([0.0] + [weight for begin, weight in self.weights if step >= begin])[-1]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, besides the task generator."""

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
    """Learning rates as shares of the peak, each with its step, straight lines between; the last
    step is the end.
    """
    drill_steps: int = 650
    equation_steps: tuple[int, int] = (1250, 1400)
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
    """Each mixture with the step it comes in at."""
    foresight: Foresight = Foresight()

    @property
    def steps(self) -> int:
        return self.rates[-1][0]

    def rate(self, step: int) -> float:
        """The learning rate as a share of its peak."""
        steps, shares = zip(*self.rates, strict=True)
        return float(np.interp(step, steps, shares))
