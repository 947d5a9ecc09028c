"""Predicted speed of Medusa on a device that may not be at hand (the paper's section G.3).

The time of a step is the least that the device's roof allows; kernels that reach less of it, Python
and launches come on top. The speedup is therefore an upper limit, closest on large models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..core.tree import CandidateTree
from ..hardware.devices import Device
from ..hardware.operators import ModelShape, Work, linear

MAX_NODES = 256
"""Largest tree that is looked at."""


@dataclass(frozen=True)
class HeadsShape:
    """The sizes of heads.

    Attributes:
        own_lm_heads: each head has an output layer of its own.
    """

    count: int
    layers: int = 1
    own_lm_heads: bool = True

    def work(self, shape: ModelShape, batch: int) -> Work:
        """Return the work of all heads in a step; they run on one position of each row."""
        h, v = shape.hidden_size, shape.vocab_size
        one = linear(batch, h, h) * self.layers
        if self.own_lm_heads:
            return (one + linear(batch, h, v)) * self.count
        return one * self.count + linear(batch * self.count, h, v)

    def parameters(self, shape: ModelShape) -> int:
        """Return the number of the heads' own weights."""
        h, v = shape.hidden_size, shape.vocab_size
        return self.count * (self.layers * h * (h + 1) + (h * v if self.own_lm_heads else 0))


@dataclass(frozen=True)
class Plan:
    """Predicted figures of a tree on a device.

    Attributes:
        tokens_per_step: expected acceleration rate.
        plain_ms: milliseconds of a step of plain decoding.
        step_ms: milliseconds of a step with the tree.
        memory: bytes of weights, heads, and keys and values.
    """

    tree: CandidateTree
    tokens_per_step: float
    plain_ms: float
    step_ms: float
    memory: float

    @property
    def overhead(self) -> float:
        """Step time in plain steps: Medusa pays from so many tokens a step on."""
        return self.step_ms / self.plain_ms

    @property
    def speedup(self) -> float:
        """Tokens a second, divided by those of plain decoding."""
        return self.tokens_per_step / self.overhead


def plans(
    shape: ModelShape,
    device: Device,
    accuracies: Sequence[Sequence[float]],
    heads: HeadsShape,
    batch: int,
    context: int,
    max_nodes: int = MAX_NODES,
) -> list[Plan]:
    """Return the plan of the best tree of each size, from plain decoding (one node) on.

    Args:
        accuracies: [K][R] share of positions whose token is among head k's r + 1 best.
        batch: rows that decode at once.
        context: tokens of each row.
    """
    largest = CandidateTree.from_accuracies(accuracies, max_nodes)
    plain = 1000 * device.seconds(shape.step(batch, 1, context))
    drafting = 1000 * device.seconds(heads.work(shape, batch))
    memory = device.size * (
        shape.parameters() + heads.parameters(shape) + shape.cache_numbers(batch, context)
    )
    found = [Plan(CandidateTree(), 1.0, plain, plain, memory)]
    for nodes in range(2, len(largest) + 1):
        tree = largest.most_likely(accuracies, nodes)
        step = drafting + 1000 * device.seconds(shape.step(batch, nodes, context))
        found.append(Plan(tree, tree.expected(accuracies), plain, step, memory))
    return found


def traced_acceleration(
    accuracies: Sequence[Sequence[float]], max_nodes: int = MAX_NODES
) -> Callable[[int], float]:
    """Return a function from numbers of nodes to the tokens a step of the best tree of that size.

    Args:
        accuracies: [K][R] share of positions whose token is among head k's r + 1 best.
        max_nodes: largest number of nodes that the function is called with.
    """
    largest = CandidateTree.from_accuracies(accuracies, max_nodes)
    return lambda nodes: largest.most_likely(accuracies, nodes).expected(accuracies)


def best(found: Sequence[Plan]) -> Plan:
    """Return the fastest plan, the smallest tree among equals."""
    return max(found, key=lambda plan: plan.speedup)
