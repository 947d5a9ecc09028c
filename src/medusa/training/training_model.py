"""The model in training: backbone and heads, from tokens to the losses of eq. 1 and eq. 2.

Shapes: B rows, S columns, M positions with a target, K heads, H hidden size, V vocabulary size.
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
    ChunkLoss,
    chunk_size,
    chunked_sum,
    chunked_sums,
    cross_entropy_sum,
    divergence_sum,
    head_loss_sum,
    head_targets,
    head_weights,
    next_targets,
)
from .vocabulary import token_indices

Project = Callable[..., Tensor]
"""Function of hidden states [M, H] and the output layer's trainable weights to logits [M, V]."""


@dataclass(frozen=True)
class TargetPositions:
    """Hidden states at the positions whose next token is trained on, and their targets.

    Attributes:
        hidden: [M, H] input of the lm_head.
        next: [M] the next token, the backbone's target.
        ahead: [M, K] the tokens after it, the heads' targets; -100 after the end of the text.
        teacher: [M, H] the same hidden states from the original backbone, for self-distillation.
    """

    hidden: Tensor
    next: Tensor
    ahead: Tensor
    teacher: Tensor | None = None


class TrainingModel(nn.Module):
    """A backbone and its heads; the forward pass returns training losses.

    Args:
        base: the backbone; `requires_grad` of its parameters decides which of them are trained.
        heads: the heads.
        decay: base of lambda_k = decay^k (eq. 1).
        heads_learn: include the heads' losses; False trains the backbone alone.
        distilled: the backbone's loss is the KL divergence from the backbone with its adapter off
            (self-distillation, section 2.3.2) instead of the cross-entropy with the data.
        chunk: positions whose logits are in memory at a time; by default `chunk_size`.
        overlap: weight of the total variation in the heads' losses (see `head_loss_sum`).
    """

    def __init__(
        self,
        base: PreTrainedModel,
        heads: MedusaHeads,
        decay: float = 0.8,
        heads_learn: bool = True,
        distilled: bool = False,
        chunk: int | None = None,
        overlap: float = 0.0,
    ):
        super().__init__()
        self.base, self.heads = base, heads
        self.heads_learn, self.distilled, self.chunk = heads_learn, distilled, chunk
        self.decay, self.overlap = decay, overlap
        self._shared_rows: Tensor | None = None
        self.rule = LogitRule.of(base.config.get_text_config())

    @property
    def _no_split_modules(self) -> Any:
        """Names of the backbone's layer classes, which FSDP keeps whole when it shards a model."""
        return self.base._no_split_modules

    @property
    def backbone_learns(self) -> bool:
        """Return True if any parameter of the backbone is trained."""
        return any(parameter.requires_grad for parameter in self.base.parameters())

    def restrict_vocabulary(self, tokens: Tensor) -> None:
        """Restrict the heads to some tokens: their loss, and what they propose.

        Args:
            tokens: [R] token ids in ascending order.

        Raises:
            ValueError: the heads share an lm_head that is quantised or trained.
        """
        weight = self.base.get_output_embeddings().weight
        if self.heads.w2 is None and (not weight.is_floating_point() or weight.requires_grad):
            raise ValueError(
                "draft_vocab_size needs an lm_head that is neither quantised nor trained: leave it "
                "out"
            )
        self.heads.restrict(tokens)
        self._shared_rows = None

    def train(self, mode: bool = True) -> TrainingModel:
        """Set training mode like `nn.Module.train`; a frozen backbone stays without dropout."""
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
        """Return the loss of a batch and its parts, or with `top` the counts of an evaluation.

        The loss is eq. 1 if the backbone is frozen, otherwise eq. 2.

        Args:
            counts: [1 + K] numbers of targets by which the sums of backbone and heads are divided;
                by default those of the batch.
            weight: lambda_0 of eq. 2; without effect if the backbone is frozen.
            hidden: [M, H] cached hidden states, with `targets`, instead of a batch.
            targets: [M, 1 + K] targets of the cached states.
            top: number of ranks to count in an evaluation; 0 computes the loss.
            batch: `input_ids`, `labels`, `position_ids` and `segments`, each [B, S].

        Returns:
            `loss`, and `parts` [1 + K]: the unweighted mean losses of backbone and heads.
            With `top`: `sums` [1 + K] of cross-entropies over the whole vocabulary; `hits`
            [K, top], the number of targets among the best r + 1 tokens that a head may propose;
            and `counts` [1 + K], the numbers of targets.
        """
        if hidden is not None and targets is not None:
            learnt = TargetPositions(hidden, targets[:, 0], targets[:, 1:])
        else:
            learnt = self.positions(**batch)
        own_counts = torch.cat(
            [learnt.next.ne(IGNORED).sum()[None], learnt.ahead.ne(IGNORED).sum(0)]
        )
        if top:
            return {**self._evaluated(learnt, top), "counts": own_counts}
        counts = own_counts if counts is None else counts
        sums = [
            self._backbone_loss(learnt),
            *(self._head_losses(learnt) if self.heads_learn else ()),
        ]
        parts = torch.stack(sums) / counts[: len(sums)].clamp_min(1).to(sums[0].device)
        lambdas = head_weights(self.heads.config.num_heads, self.decay)
        heads = sum(lambda_k * part for lambda_k, part in zip(lambdas, parts[1:], strict=False))
        loss = parts[0] + weight * heads if self.backbone_learns else heads
        return {"loss": torch.as_tensor(loss), "parts": parts.detach()}

    def _evaluated(self, learnt: TargetPositions, top: int) -> dict[str, Tensor]:
        """Return the sums of cross-entropies [1 + K] and the heads' hits by rank [K, top]."""
        num_heads = self.heads.config.num_heads
        sums, hits = torch.zeros(1 + num_heads), torch.zeros(num_heads, top)
        lm_head = self.base.get_output_embeddings()
        dtype = next(self.heads.parameters(), learnt.hidden).dtype
        size = self.chunk or chunk_size(learnt.hidden.device)
        for begin in range(0, len(learnt.hidden), size):
            part = slice(begin, begin + size)
            hidden, following, ahead = learnt.hidden[part], learnt.next[part], learnt.ahead[part]
            sums[0] += cross_entropy_sum(self.rule(lm_head(hidden)), following).item()
            logits = self.heads(
                hidden.to(dtype), lambda states, like=hidden: lm_head(states.to(like.dtype))
            )
            for head in range(num_heads):
                sums[1 + head] += cross_entropy_sum(logits[head], ahead[:, head]).item()
                proposed = self.heads.proposed(logits[head])
                right = proposed.topk(top).indices == ahead[:, head, None]
                hits[head] += right.cumsum(-1).sum(0).cpu()
        return {"sums": sums, "hits": hits}

    def positions(
        self, input_ids: Tensor, labels: Tensor, position_ids: Tensor, segments: Tensor
    ) -> TargetPositions:
        """Run the backbone and return the positions with a target; all arguments are [B, S].

        Self-distillation runs the backbone a second time, with its adapter off.
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
        hidden = self._hidden_states(inputs)[chosen]
        teacher = None
        if self.distilled:
            with self.original_backbone():
                teacher = self._hidden_states(inputs)[chosen]
        return TargetPositions(hidden, following[chosen], ahead, teacher)

    def _hidden_states(self, inputs: dict[str, Any]) -> Tensor:
        """Return the hidden states [B, S, H] that the backbone gives its lm_head."""
        lm_head = self.base.get_output_embeddings()
        gradients = nullcontext() if self.backbone_learns else torch.no_grad()
        # The lm_head itself gets one position only: its logits [B, S, V] would fill the memory.
        with captured_input(lm_head, passed_on=1) as captured, gradients:
            self.base(**inputs)
        return captured[-1]

    def _mask(self, segments: Tensor, position_ids: Tensor) -> Any:
        """Return additive masks [B, 1, S, S] that separate packed examples; None without packing.

        A model whose layers differ in their attention windows gets a dict of masks by layer kind.
        """
        if int(segments.max()) <= 1:
            return None
        layout = Layout.of(self.base)
        same = segments[:, :, None] == segments[:, None, :]
        distance = position_ids[:, :, None] - position_ids[:, None, :]
        masks = {}
        for kind, window in layout.windows.items():
            seen = same & (distance >= 0) & (distance < window if window is not None else True)
            masks[kind] = torch.zeros(
                seen.shape, dtype=layout.dtype, device=seen.device
            ).masked_fill(~seen, torch.finfo(layout.dtype).min)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _backbone_loss(self, learnt: TargetPositions) -> Tensor:
        """Return the backbone's loss, summed over positions; 0 if it is frozen."""
        if not self.backbone_learns:
            return torch.zeros((), device=learnt.hidden.device)
        project, weights = self._projection()
        if learnt.teacher is None:
            return chunked_sum(_loss(project), [learnt.hidden, learnt.next], weights, self.chunk)

        def divergence(states: Tensor, teacher_states: Tensor, *weights: Tensor) -> Tensor:
            lm_head = self.base.get_output_embeddings()
            with self.original_backbone(lm_head):
                teacher = self.rule(lm_head(teacher_states))
            return divergence_sum(project(states, *weights), teacher)

        return chunked_sum(divergence, [learnt.hidden, learnt.teacher], weights, self.chunk)

    def _head_losses(self, learnt: TargetPositions) -> list[Tensor]:
        """Return the loss of each head (the terms of eq. 1), summed over positions."""
        dtype = next(self.heads.parameters(), learnt.hidden).dtype
        states = self.heads.residual(learnt.hidden.to(dtype))
        tokens = None if self.backbone_learns else self.heads.token_map
        targets = learnt.ahead if tokens is None else token_indices(learnt.ahead, tokens)
        stacked = [states, targets.T]  # each [K, M, ...]
        if self.heads.w2 is not None:
            weight = self.heads.w2 if tokens is None else self.heads.w2.index_select(1, tokens)
            loss = _loss(self._product(self.heads.output_bias, tokens), self.overlap)
            return list(chunked_sums(loss, stacked, [weight], self.chunk).unbind())
        project, weights = self._shared_projection(tokens)
        loss = _loss(project, self.overlap)
        return [
            chunked_sum(loss, [each[head] for each in stacked], weights, self.chunk)
            for head in range(len(states))
        ]

    def _shared_projection(self, tokens: Tensor | None) -> tuple[Project, list[Tensor]]:
        """Return the lm_head as a function of states and weights, and the weights.

        Args:
            tokens: [R] tokens whose logits it returns; None is all.
        """
        if tokens is None:
            return self._projection()
        lm_head = self.base.get_output_embeddings()
        if self._shared_rows is None:  # the lm_head is frozen, so they never change
            self._shared_rows = lm_head.weight.detach().index_select(0, tokens)
        return self._product(getattr(lm_head, "bias", None), tokens), [self._shared_rows]

    def _product(self, bias: Tensor | None, tokens: Tensor | None) -> Project:
        """Return the function of states and an output layer's rows to logits.

        Args:
            bias: [V] of the output layer, or None.
            tokens: [R] tokens of the rows; None is all.
        """
        if bias is not None and tokens is not None:
            bias = bias.index_select(0, tokens)

        def project(states: Tensor, rows: Tensor) -> Tensor:
            logits = F.linear(states.to(rows.dtype), rows)
            return self.rule(logits if bias is None else logits + bias)

        return project

    def _projection(self) -> tuple[Project, list[Tensor]]:
        """Return the lm_head as a function of states and its trainable weights, and the weights."""
        lm_head = self.base.get_output_embeddings()
        trainable = {
            name: weight for name, weight in lm_head.named_parameters() if weight.requires_grad
        }
        # A quantised lm_head converts its input itself.
        dtype = lm_head.weight.dtype if lm_head.weight.is_floating_point() else None

        def project(states: Tensor, *weights: Tensor) -> Tensor:
            named = dict(zip(trainable, weights, strict=True))
            states = states if dtype is None else states.to(dtype)
            return self.rule(functional_call(lm_head, named, (states,)))

        return project, list(trainable.values())

    @contextmanager
    def original_backbone(self, part: nn.Module | None = None) -> Iterator[None]:
        """Switch the adapter and dropout off, and compute no gradients, within the context.

        Args:
            part: module of the backbone to which this applies; by default all of it.
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
    """Yield a list that collects the first argument [B, P, ...] of each call of `module`.

    Args:
        module: module whose input is collected.
        passed_on: number of the P positions that the module itself still gets; None for all.
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


def _loss(project: Project, overlap: float = 0.0) -> ChunkLoss:
    """Return `head_loss_sum` of projected states and targets, as a loss for `chunked_sum`."""

    def loss(states: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
        return head_loss_sum(project(states, *weights), targets, overlap)

    return loss


def _switch_adapters(base: nn.Module, on: bool) -> None:
    """Switch LoRA layers on or off like peft, but keep `requires_grad` of their parameters.

    peft's `enable_adapters` also sets `requires_grad`, which here belongs to the stage of training.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in base.modules():
        if isinstance(module, BaseTunerLayer):
            flags = [parameter.requires_grad for parameter in module.parameters()]
            module.enable_adapters(on)
            for parameter, flag in zip(module.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)
