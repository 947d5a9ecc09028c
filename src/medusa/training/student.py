"""`Student`: a base model and its heads as training runs them; tokens in, the losses of eq. 1 and
eq. 2 out.

Shapes: B rows, S columns, M learnt positions, K heads, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..core.heads import LogitRule, MedusaHeads
from ..core.masks import Layout
from ..data.chats import IGNORED
from .losses import (
    chunk_size,
    chunked,
    chunked_each,
    cross_entropy_sum,
    divergence_sum,
    head_targets,
    head_weights,
    next_targets,
)
from .vocabulary import entropy_over, places


@dataclass(frozen=True)
class Positions:
    """What is learnt from: hidden states [M, H] of the positions whose next token is, and what
    comes after them.

    Attributes:
        hidden: what the lm_head reads.
        next: [M] the next token.
        ahead: [M, K] the tokens after it, -100 where the text has ended.
        teacher: [M, H] the same states of the model as it was, where it is learnt from.
    """

    hidden: Tensor
    next: Tensor
    ahead: Tensor
    teacher: Tensor | None = None


class Student(nn.Module):
    """Computes the losses of training.

    Args:
        base: the backbone; which of its parameters learn says their `requires_grad`.
        heads: the heads, which always learn but where `heads_learn` is false.
        decay: lambda_k = decay^k of eq. 1.
        heads_learn: whether the heads' loss counts (eq. 1, eq. 2) or the backbone's alone.
        distilled: the backbone's loss is the divergence from itself with its adapter off (section
            2.3.2).
        chunk: positions whose logits are held at a time; by default what suits their device.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        heads: MedusaHeads,
        decay: float = 0.8,
        heads_learn: bool = True,
        distilled: bool = False,
        chunk: int | None = None,
    ):
        super().__init__()
        self.base, self.heads = base, heads
        self.heads_learn, self.distilled, self.chunk = heads_learn, distilled, chunk
        self.decay = decay
        self.tokens: Tensor | None = None
        self._rows: Tensor | None = None
        self.rule = LogitRule.of(base.config.get_text_config())

    @property
    def _no_split_modules(self) -> Any:
        """What engines that spread a model over devices (FSDP) keep whole: the backbone's
        layers.
        """
        return self.base._no_split_modules

    @property
    def backbone_learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.base.parameters())

    def restrict(self, tokens: Tensor) -> None:
        """Take the heads' cross-entropy over these tokens alone; evaluations stay over the whole
        vocabulary.

        Args:
            tokens: [R] in ascending order; every target of training is one of them.

        Raises:
            ValueError: the heads share an lm_head whose rows cannot be read, or that learns.
        """
        weight = self.base.get_output_embeddings().weight
        if self.heads.w2 is None and (not weight.is_floating_point() or weight.requires_grad):
            raise ValueError(
                "head_vocabulary data needs an lm_head that is neither quantised nor trained: take "
                "full"
            )
        self.tokens, self._rows = tokens, None

    def train(self, mode: bool = True) -> Student:
        """As a module's; dropout stays off in a backbone that does not learn."""
        super().train(mode)
        self.base.train(mode and self.backbone_learns)
        return self

    def forward(
        self,
        counts: Tensor | None = None,
        weight: float = 1.0,
        hidden: Tensor | None = None,
        targets: Tensor | None = None,
        top: int = 0,
        **batch: Tensor,
    ) -> dict[str, Tensor]:
        """The loss of a batch, and its parts; or, with `top`, what evaluation counts.

        Args:
            counts: [1 + K] over how many tokens the sums of backbone and heads are averaged; by
                default the batch's.
            weight: lambda_0 of eq. 2; of no account where the backbone does not learn.
            hidden: [M, H] states that were kept, with `targets` [M, 1 + K], in place of a batch.
            batch: `input_ids`, `labels`, `position_ids` and `segments`, each [B, S].
            top: ranks to count.

        Returns:
            `loss`, and `parts` [1 + K]: the backbone's loss and each head's, averages over tokens
            without weights. With `top`: `sums` [1 + K] of cross-entropies, `hits` [K, top] of
            tokens among a head's so many best, and `counts` [1 + K] of tokens.
        """
        if hidden is not None and targets is not None:
            learnt = Positions(hidden, targets[:, 0], targets[:, 1:])
        else:
            learnt = self.positions(**batch)
        tokens = torch.cat([learnt.next.ne(IGNORED).sum()[None], learnt.ahead.ne(IGNORED).sum(0)])
        if top:
            return {**self._measured(learnt, top), "counts": tokens}
        counts = tokens if counts is None else counts
        sums = [
            self._backbone_loss(learnt),
            *(self._head_losses(learnt) if self.heads_learn else ()),
        ]
        parts = torch.stack(sums) / counts[: len(sums)].clamp_min(1).to(sums[0].device)
        heads = sum(each * part for each, part in zip(self._weights(), parts[1:], strict=False))
        loss = parts[0] + weight * heads if self.backbone_learns else heads
        return {"loss": torch.as_tensor(loss), "parts": parts.detach()}

    def _measured(self, learnt: Positions, top: int) -> dict[str, Tensor]:
        """Sums of cross-entropies, and hits by rank."""
        heads = self.heads.config.num_heads
        sums, hits = torch.zeros(1 + heads), torch.zeros(heads, top)
        lm_head = self.base.get_output_embeddings()
        dtype = next(self.heads.parameters(), learnt.hidden).dtype
        size = self.chunk or chunk_size(learnt.hidden.device)
        for begin in range(0, len(learnt.hidden), size):
            part = slice(begin, begin + size)
            states, following, ahead = learnt.hidden[part], learnt.next[part], learnt.ahead[part]
            sums[0] += float(cross_entropy_sum(self.rule(lm_head(states)), following))
            logits = self.heads(
                states.to(dtype), lambda each, like=states: lm_head(each.to(like.dtype))
            )
            for head in range(heads):
                sums[1 + head] += float(cross_entropy_sum(logits[head], ahead[:, head]))
                right = logits[head].topk(top).indices == ahead[:, head, None]
                hits[head] += right.cumsum(-1).sum(0).cpu()
        return {"sums": sums, "hits": hits}

    def _weights(self) -> list[float]:
        return head_weights(self.heads.config.num_heads, self.decay)

    def positions(
        self, input_ids: Tensor, labels: Tensor, position_ids: Tensor, segments: Tensor
    ) -> Positions:
        """The hidden states at the positions that are learnt from, by one run of the backbone (two
        if it teaches).
        """
        inputs = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": self._mask(segments, position_ids),
            "use_cache": False,
        }
        following = next_targets(labels, segments)
        chosen = following != IGNORED
        ahead = head_targets(labels, segments, self.heads.config.num_heads)[chosen]
        hidden = self._states(inputs)[chosen]
        teacher = None
        if self.distilled:
            with self.as_it_was():
                teacher = self._states(inputs)[chosen]
        return Positions(hidden, following[chosen], ahead, teacher)

    def _states(self, inputs: dict[str, Any]) -> Tensor:
        lm_head = self.base.get_output_embeddings()
        learning = nullcontext() if self.backbone_learns else torch.no_grad()
        with captured_input(lm_head, passed_on=1) as captured, learning:
            self.base(**inputs)
        return captured[-1]

    def _mask(self, segments: Tensor, position_ids: Tensor) -> Any:
        """None where causal attention will do, else masks [B, 1, S, S] that keep a row's examples
        apart.
        """
        if int(segments.max()) <= 1:
            return None
        layout = Layout.of(self.base)
        same = segments[:, :, None] == segments[:, None, :]
        back = position_ids[:, :, None] - position_ids[:, None, :]
        masks = {}
        for kind, window in layout.windows.items():
            seen = same & (back >= 0) & (back < window if window is not None else True)
            masks[kind] = torch.zeros(
                seen.shape, dtype=layout.dtype, device=seen.device
            ).masked_fill(~seen, torch.finfo(layout.dtype).min)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _backbone_loss(self, learnt: Positions) -> Tensor:
        """Sum over positions: cross-entropy of the next token, or divergence from the backbone as
        it was.
        """
        if not self.backbone_learns:
            return torch.zeros((), device=learnt.hidden.device)
        project, weights = self._projection()
        if learnt.teacher is None:
            return chunked(_entropy(project), [learnt.hidden, learnt.next], weights, self.chunk)

        def divergence(states: Tensor, theirs: Tensor, *weights: Tensor) -> Tensor:
            lm_head = self.base.get_output_embeddings()
            with self.as_it_was(lm_head):
                teacher = self.rule(lm_head(theirs))
            return divergence_sum(project(states, *weights), teacher)

        return chunked(divergence, [learnt.hidden, learnt.teacher], weights, self.chunk)

    def _head_losses(self, learnt: Positions) -> list[Tensor]:
        """Sums over positions of every head's cross-entropy (eq. 1's terms)."""
        dtype = next(self.heads.parameters(), learnt.hidden).dtype
        states = self.heads.residual(learnt.hidden.to(dtype))
        if self.tokens is not None:
            self.tokens = self.tokens.to(states.device)
            return self._restricted_losses(states, learnt.ahead, self.tokens)
        if self.heads.w2 is not None:
            stacked = [states, learnt.ahead.T]
            return list(
                chunked_each(_entropy(self._own), stacked, [self.heads.w2], self.chunk).unbind()
            )
        project, weights = self._projection()
        return [
            chunked(_entropy(project), [state, learnt.ahead[:, head]], weights, self.chunk)
            for head, state in enumerate(states)
        ]

    def _restricted_losses(self, states: Tensor, ahead: Tensor, tokens: Tensor) -> list[Tensor]:
        """As `_head_losses`, over `tokens` alone; states [K, M, H], ahead [M, K]."""
        targets = places(ahead, tokens)
        if self.heads.w2 is not None:
            rows = self.heads.w2.index_select(1, tokens)
            entropy = entropy_over(tokens, self.heads.output_bias, self.rule)
            return list(chunked_each(entropy, [states, targets.T], [rows], self.chunk).unbind())
        lm_head = self.base.get_output_embeddings()
        if self._rows is None:
            self._rows = lm_head.weight.detach().index_select(0, tokens)
        entropy = entropy_over(tokens, getattr(lm_head, "bias", None), self.rule)
        return [
            chunked(entropy, [state, targets[:, head]], [self._rows], self.chunk)
            for head, state in enumerate(states)
        ]

    def _own(self, states: Tensor, weight: Tensor) -> Tensor:
        """The logits of a head with an lm_head of its own."""
        logits = F.linear(states, weight)
        return self.rule(
            logits if self.heads.output_bias is None else logits + self.heads.output_bias
        )

    def _projection(self) -> tuple[Callable[..., Tensor], list[Tensor]]:
        """The lm_head's logits as a function of states and of those of its weights that learn."""
        lm_head = self.base.get_output_embeddings()
        learning = {
            name: weight for name, weight in lm_head.named_parameters() if weight.requires_grad
        }
        dtype = lm_head.weight.dtype if lm_head.weight.is_floating_point() else None

        def project(states: Tensor, *weights: Tensor) -> Tensor:
            named = dict(zip(learning, weights, strict=True))
            return self.rule(
                functional_call(lm_head, named, (states if dtype is None else states.to(dtype),))
            )

        return project, list(learning.values())

    @contextmanager
    def as_it_was(self, part: nn.Module | None = None) -> Iterator[None]:
        """The backbone (or a part of it) without its adapter and without dropout, and no
        gradients.
        """
        module = self.base if part is None else part
        training = module.training
        module.eval()
        _switch_adapters(module, False)
        try:
            with torch.no_grad():
                yield
        finally:
            _switch_adapters(module, True)
            module.train(training)


@contextmanager
def captured_input(module: nn.Module, passed_on: int | None = None) -> Iterator[list[Tensor]]:
    """The first argument [B, P, ...] of every call of `module` while the context lasts.

    Args:
        passed_on: how many of the P the module itself still gets; None is all of them.
    """
    captured: list[Tensor] = []

    def capture(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        captured.append(args[0])
        return args if passed_on is None else (args[0][:, :passed_on], *args[1:])

    handle = module.register_forward_pre_hook(capture)
    try:
        yield captured
    finally:
        handle.remove()


def _entropy(project: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The cross-entropy of projected states with targets, as `chunked` takes it."""

    def entropy(states: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
        return cross_entropy_sum(project(states, *weights), targets)

    return entropy


def _switch_adapters(base: nn.Module, on: bool) -> None:
    """As peft does it, but what learns is told by nobody else."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in base.modules():
        if isinstance(module, BaseTunerLayer):
            learning = [parameter.requires_grad for parameter in module.parameters()]
            module.enable_adapters(on)
            for parameter, learns in zip(module.parameters(), learning, strict=True):
                parameter.requires_grad_(learns)
