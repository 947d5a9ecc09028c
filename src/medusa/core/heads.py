"""Medusa heads: K small predictors of the tokens after the next one (paper, section 2.1.1).

Shapes: K heads, L residual layers a head, H hidden size, V vocabulary; `...` is any leading shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Projection = Callable[[Tensor], Tensor]
TOKEN_MAP = "token_map"
"""Name of the tensor with the tokens that heads may propose, as vLLM has it."""
SHOWN = 5
"""Number of problems that an error message lists."""


@dataclass(frozen=True)
class MedusaConfig:
    """The shape of a set of heads.

    Args:
        num_heads: K. Head k (from 0) predicts the token k + 2 positions after the last token of
            its input.
        num_layers: L, residual layers of each head; with 0 a head is only a projection.
        hidden_size: H, the width of the hidden state that the base model's lm_head reads.
        vocab_size: V, the rows of the base model's lm_head.
        own_lm_head: every head has an output projection of its own (the paper's heads). False
            shares the base model's, which is then neither copied nor saved.
        bias: whether the residual layers have a bias (the paper's formula has none, its code has).
        draft_vocab_size: number of tokens that the heads may propose; None is all of them.
    """

    num_heads: int
    num_layers: int
    hidden_size: int
    vocab_size: int
    own_lm_head: bool = True
    bias: bool = True
    draft_vocab_size: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("num_heads", 1),
            ("num_layers", 0),
            ("hidden_size", 1),
            ("vocab_size", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 1 <= self.choices <= self.vocab_size:
            raise ValueError(
                f"draft_vocab_size must lie in 1 to {self.vocab_size}, got {self.draft_vocab_size}"
            )

    @property
    def choices(self) -> int:
        """Return the number of tokens that the heads may propose."""
        return self.vocab_size if self.draft_vocab_size is None else self.draft_vocab_size

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield the name, in the original format, and the shape of every tensor of the heads."""
        h, v = self.hidden_size, self.vocab_size
        for head in range(self.num_heads):
            for layer in range(self.num_layers):
                yield f"{head}.{layer}.linear.weight", (h, h)
                if self.bias:
                    yield f"{head}.{layer}.linear.bias", (h,)
            if self.own_lm_head:
                yield f"{head}.{self.num_layers}.weight", (v, h)
        if self.draft_vocab_size is not None:
            yield TOKEN_MAP, (self.draft_vocab_size,)

    def check(
        self, shapes: Mapping[str, tuple[int, ...]], own_name: Callable[[str], str] = str
    ) -> None:
        """Check names and shapes of tensors.

        The time it takes does not grow with `num_heads`, which a broken file may set to any number.

        Args:
            shapes: shapes by the tensors' names in the original format.
            own_name: returns the name of a tensor in the file, for the message.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape; lists the first ones.
        """
        problems = [
            f"missing tensor {own_name(name)}" for name in islice(self._missing(shapes), SHOWN + 1)
        ]
        if len(problems) <= SHOWN:
            mine = dict(self.shapes())
            problems += [f"unknown tensor {own_name(name)}" for name in shapes if name not in mine]
            problems += [
                f"{own_name(name)} has shape {list(shapes[name])}, the base model needs "
                f"{list(shape)}"
                for name, shape in mine.items()
                if name in shapes and tuple(shapes[name]) != shape
            ]
        if problems:
            more = "; and more" if len(problems) > SHOWN else ""
            raise ValueError(f"these heads do not fit: {'; '.join(problems[:SHOWN])}{more}")

    def _missing(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
        return (name for name, _ in self.shapes() if name not in shapes)


@dataclass(frozen=True)
class LogitRule:
    """The function that a base model applies to the lm_head's output; heads apply it too.

    It is `softcap * tanh(scale * logits / softcap)`. Cohere has a scale, Granite divides (a scale
    below 1), Gemma-2 has a soft-cap. The rule never changes which token ranks first. It changes the
    probabilities, which training, sampling and rejection read.
    """

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitRule:
        """Return the rule of a transformers model configuration."""
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        return cls(
            scale=scale / float(getattr(config, "logits_scaling", None) or 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


class MedusaHeads(nn.Module):
    """K heads over one hidden state: `logits_k = W2_k (SiLU(W1_k h + b_k) + h)` (section 2.1.1).

    All heads are computed together: parameters are stacked along a leading K, so that a layer of
    all heads is one batched product. W1 and b start at zero and W2 at the base model's lm_head
    (`from_lm_head`), so a new head predicts exactly what the base model predicts. If the base's
    lm_head has a bias, every head adds it as a constant, which is neither trained nor saved.

    Attributes:
        token_map: [R] ids, in ascending order, of the tokens that the heads may propose; None is
            all of them. It is for decoding: `forward` computes the logits of all tokens.
    """

    output_bias: Tensor | None
    token_map: Tensor | None

    def __init__(
        self, config: MedusaConfig, rule: LogitRule | None = None, output_bias: Tensor | None = None
    ):
        super().__init__()
        self.config = config
        self.rule = rule or LogitRule()
        k, h, v = config.num_heads, config.hidden_size, config.vocab_size
        layers = range(config.num_layers)
        self.w1 = nn.ParameterList(torch.zeros(k, h, h) for _ in layers)
        self.b1 = nn.ParameterList(torch.zeros(k, 1, h) for _ in layers if config.bias)
        self.w2 = (
            nn.Parameter(torch.empty(k, v, h).normal_(std=h**-0.5)) if config.own_lm_head else None
        )
        self.register_buffer("output_bias", output_bias, persistent=False)
        draft = config.draft_vocab_size
        self.register_buffer("token_map", None if draft is None else torch.arange(draft))

    @classmethod
    def from_lm_head(
        cls, lm_head: nn.Module, config: MedusaConfig, rule: LogitRule | None = None
    ) -> MedusaHeads:
        """Return new heads that predict what the base model predicts.

        They have the dtype and the device of its lm_head.

        Raises:
            ValueError: the lm_head is quantised or offloaded.
        """
        weight, bias = lm_head.weight, getattr(lm_head, "bias", None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            raise ValueError(
                "the base model's lm_head is quantised and cannot start the heads; keep it in "
                "floating point (llm_int8_skip_modules=['lm_head'], or the like) or load trained "
                "heads"
            )
        if weight.is_meta:
            raise ValueError(
                "the base model's lm_head is offloaded and cannot start the heads; load the model "
                "with a device_map that keeps lm_head on a device"
            )
        heads = cls(config, rule, None if bias is None else bias.detach().clone())
        if heads.w2 is not None:
            with torch.no_grad():
                heads.w2.copy_(weight[: config.vocab_size])
        return heads.to(dtype=weight.dtype, device=weight.device)

    def residual(self, hidden: Tensor, first: int | None = None) -> Tensor:
        """Return what each head, or each of the `first`, projects: [..., H] -> [K, ..., H]."""
        count, lead = first or self.config.num_heads, hidden.shape[:-1]
        states = hidden.reshape(1, -1, hidden.shape[-1]).expand(count, -1, -1)
        for layer, weight in enumerate(self.w1):
            product = torch.bmm(states, weight[:count].mT)
            states = states + F.silu(
                product + self.b1[layer][:count] if self.config.bias else product
            )
        return states.reshape(count, *lead, hidden.shape[-1])

    def forward(
        self,
        hidden: Tensor,
        lm_head: Projection | None = None,
        first: int | None = None,
        products: Sequence[Projection] = (),
    ) -> Tensor:
        """Return the logits [K, ..., V] of all heads for hidden states [..., H].

        Args:
            hidden: input of the base model's lm_head.
            lm_head: the base model's projection, for heads that share it.
            first: run only this many heads; None runs all.
            products: functions that multiply by each head's own lm_head, where a faster product
                than torch's exists.

        Raises:
            ValueError: the heads share the base's lm_head and none was given.
        """
        states = self.residual(hidden, first)
        if self.w2 is not None:
            if products:
                logits = torch.stack(
                    [product(state) for product, state in zip(products, states, strict=False)]
                )
            else:
                logits = torch.bmm(states.flatten(1, -2), self.w2[: len(states)].mT).reshape(
                    *states.shape[:-1], -1
                )
            if self.output_bias is not None:
                logits = logits + self.output_bias
        elif lm_head is not None:
            logits = lm_head(states)
        else:
            raise ValueError("these heads share the base model's lm_head: pass it as `lm_head`")
        return self.rule(logits)

    def restrict(self, tokens: Tensor | None) -> None:
        """Let the heads propose these tokens only.

        Args:
            tokens: [R] ids in ascending order; None is all tokens.

        Raises:
            ValueError: the ids are not in ascending order, or not in the vocabulary.
        """
        config = replace(self.config, draft_vocab_size=None if tokens is None else len(tokens))
        if tokens is not None:
            _check_token_map(tokens, config.vocab_size)
            tokens = tokens.to(next(self.parameters(), tokens).device)
        self.config, self.token_map = config, tokens

    def proposed(self, logits: Tensor) -> Tensor:
        """Return logits [..., V] for candidates: minus infinity for tokens not in `token_map`.

        Args:
            logits: [..., V] of all tokens, or [..., R] of those in `token_map`.
        """
        if self.token_map is None:
            return logits
        if logits.shape[-1] != len(self.token_map):
            logits = logits.index_select(-1, self.token_map)
        everything = logits.new_full((*logits.shape[:-1], self.config.vocab_size), -torch.inf)
        return everything.index_copy_(-1, self.token_map, logits)

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by the original format's names: one for each head and layer."""
        named: dict[str, Tensor] = {}
        for head in range(self.config.num_heads):
            for layer, weight in enumerate(self.w1):
                named[f"{head}.{layer}.linear.weight"] = weight[head].detach()
                if self.config.bias:
                    named[f"{head}.{layer}.linear.bias"] = self.b1[layer][head, 0].detach()
            if self.w2 is not None:
                named[f"{head}.{self.config.num_layers}.weight"] = self.w2[head].detach()
        if self.token_map is not None:
            named[TOKEN_MAP] = self.token_map
        return named

    def load_tensors(self, named: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters; names and shapes must be those of `tensors()`.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape, or the token map is not
                in ascending order.
        """
        self.config.check({name: tuple(tensor.shape) for name, tensor in named.items()})
        if TOKEN_MAP in named:
            _check_token_map(named[TOKEN_MAP], self.config.vocab_size)
        for name, target in self.tensors().items():
            target.copy_(named[name])


def _check_token_map(tokens: Tensor, vocab_size: int) -> None:
    """Raise ValueError unless ids [R] are in ascending order and in the vocabulary."""
    ascending = bool((tokens.diff() > 0).all())
    if not ascending or int(tokens[0]) < 0 or int(tokens[-1]) >= vocab_size:
        raise ValueError(f"{TOKEN_MAP} must hold ids from 0 to {vocab_size - 1} in ascending order")
