"""What the heads would have drafted along texts of the model's own: what every calibration figure
is made of.

A position's credit w[k, r] is the probability that the r-th token drawn from head k is the one the
policy accepts. For greedy decoding it is 1 at the rank where the head's list holds the token that
came, and 0 elsewhere. For rejection sampling, where draws and acceptance are random, it is that
probability given the token that came, estimated without bias from one set of draws. In both the
probability of a rank path is the mean over positions of its credits' product.

Shapes: M positions, K heads, R ranks, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from .. import files
from ..core.acceptance import Rejection, draws, normalised
from ..core.engine import left_padded
from ..core.model import TreeModel
from ..core.request import Row
from ..generation import prepare

CHUNK_BYTES = 2**28
"""How much memory the logits of one chunk of positions may take, with all that is computed from
them.
"""
SAMPLED = 64
"""Values of each weight that tell a model from another."""


@dataclass(frozen=True)
class Recording:
    """Credits of all positions after which a step may start, text after text.

    Attributes:
        credit: [M, K, R] float32; 0 where a text has ended.
        known: [M, K] whether the text reaches as far as the head looks.
        lengths: positions of each text, M in all; one fewer than its answer has tokens.
    """

    credit: Tensor
    known: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def join(cls, parts: Sequence[Recording]) -> Recording:
        """Several recordings as one."""
        lengths = tuple(length for part in parts for length in part.lengths)
        return cls(
            torch.cat([part.credit for part in parts]),
            torch.cat([part.known for part in parts]),
            lengths,
        )

    @property
    def num_heads(self) -> int:
        return self.credit.shape[1]

    @cached_property
    def certain(self) -> bool:
        """Whether every draft is right or wrong, as in greedy decoding, and none right with a
        probability.
        """
        return bool(((self.credit == 0) | (self.credit == 1)).all())

    def first(self, num_heads: int) -> Recording:
        """What the first heads alone would have drafted."""
        return Recording(self.credit[:, :num_heads], self.known[:, :num_heads], self.lengths)

    def accuracies(self) -> list[list[float]]:
        """[K][R] the paper's a_k^(i): the share of known positions with the token in head k's top i
        (appendix C).
        """
        hits = self.credit.double().sum(0).cumsum(-1)
        shares: list[list[float]] = (hits / self.known.sum(0)[:, None].clamp_min(1)).tolist()
        return shares

    def save(self, file: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        with files.replacing(file) as beside:
            save_file(
                {"credit": self.credit, "known": self.known, "lengths": torch.tensor(self.lengths)},
                beside,
            )

    @classmethod
    def load(cls, file: Path) -> Recording:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is broken, or holds something else; names it.
        """
        try:
            named = load_file(file)
            found = cls(named["credit"], named["known"], tuple(named["lengths"].tolist()))
            found.check()
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{file} is broken ({error}): delete it, and its batch is recorded again"
            ) from None
        return found

    def check(self) -> None:
        """Raise ValueError where the parts do not fit each other, or the credits are no numbers."""
        shape = (sum(self.lengths), self.num_heads, self.credit.shape[-1])
        if self.credit.shape != shape or self.known.shape != shape[:2]:
            raise ValueError(
                f"credit {list(self.credit.shape)}, known {list(self.known.shape)}, expected "
                f"{list(shape)}"
            )
        if (
            self.known.dtype != torch.bool
            or not self.credit.is_floating_point()
            or not self.credit.isfinite().all()
        ):
            raise ValueError("known must be booleans and credit finite numbers")


def record(
    model: TreeModel,
    prompts: Sequence[Sequence[int]],
    arguments: dict[str, Any],
    *,
    acceptance: str = "auto",
    ranks: int = 32,
    batch_size: int = 8,
    work: Path | None = None,
    finished: Callable[[int], None] = lambda texts: None,
) -> Recording:
    """Let the model answer the prompts, and record where its heads hold each token that came.

    Args:
        prompts: token ids of each prompt.
        arguments: of `generate`: max_new_tokens, do_sample, temperature, ...
        acceptance: the policy the tree will serve.
        ranks: R, how far down each head's list is looked.
        batch_size: prompts answered at once.
        work: folder for finished batches, in which an interrupted recording is resumed. Each model,
            set of prompts and settings has a folder of its own there.
        finished: told how many texts a batch had.

    Raises:
        ValueError: a file in `work` is broken, or another process records there.
    """
    batches = [prompts[begin : begin + batch_size] for begin in range(0, len(prompts), batch_size)]
    with ExitStack() as held:
        if work is not None:
            settings = {
                **arguments,
                "acceptance": acceptance,
                "ranks": ranks,
                "batch_size": batch_size,
            }
            work = work / _key(model, prompts, settings)
            held.enter_context(files.locked(work, "--resume"))
            work.mkdir(exist_ok=True)
        parts = []
        for number, batch in enumerate(batches):
            file = work / f"{number * batch_size:06}.safetensors" if work is not None else None
            if file is not None and file.exists():
                parts.append(_kept_batch(file, len(batch)))
            else:
                parts.append(_record_batch(model, batch, arguments, acceptance, ranks))
                if file is not None:
                    parts[-1].save(file)
            finished(len(batch))
    return Recording.join(parts)


def _kept_batch(file: Path, texts: int) -> Recording:
    kept = Recording.load(file)
    if len(kept.lengths) != texts:
        raise ValueError(
            f"{file} holds {len(kept.lengths)} texts instead of {texts}: delete it, and record "
            "again"
        )
    return kept


def _key(model: TreeModel, prompts: Sequence[Sequence[int]], settings: dict[str, Any]) -> str:
    """Return a name for recordings of this model with these prompts and settings: a digest of all
    that decides them.
    """
    asked = {
        name: str(value) for name, value in settings.items() if name != "tokenizer"
    }  # stop strings tell of it
    defaults = [config.to_dict() for config in (model.base.config, model.base.generation_config)]
    for each in defaults:
        for name in ("_name_or_path", "transformers_version"):
            each.pop(name, None)
    digest = hashlib.sha256(
        json.dumps(
            [[list(prompt) for prompt in prompts], asked, defaults], sort_keys=True, default=str
        ).encode()
    )
    for name, weight in [*model.base.named_parameters(), *model.heads.named_parameters("heads")]:
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.device.type != "meta":  # offloaded weights are not read
            values = weight.detach().flatten()
            sample = values[:: max(1, len(values) // SAMPLED)].contiguous().cpu()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def _record_batch(
    model: TreeModel,
    prompts: Sequence[Sequence[int]],
    arguments: dict[str, Any],
    acceptance: str,
    ranks: int,
) -> Recording:
    ids, mask = left_padded([list(prompt) for prompt in prompts], model.device)
    session = prepare(model, ids, attention_mask=mask, acceptance=acceptance, **arguments)
    for _ in session:
        pass
    sampled = isinstance(session.requests[0].policy, Rejection)
    parts = [
        _record_row(model, row, len(prompt), sampled, ranks)
        for row, prompt in zip(session.rows, prompts, strict=True)
    ]
    return Recording.join(parts)


def _record_row(model: TreeModel, row: Row, prompt: int, sampled: bool, ranks: int) -> Recording:
    """The positions of one text: from the last of the prompt on, each but the last, after which no
    step starts.
    """
    text = torch.tensor(row.ids, device=model.device)
    count = len(row.ids) - prompt - 1
    places = prompt - 1 + torch.arange(count, device=text.device)
    came = _came(text, places, model.heads.config.num_heads)
    hidden = model.hidden_states(text[None])[0]
    credit = []
    size = max(
        1,
        CHUNK_BYTES
        // ((64 if sampled else 4) * model.heads.config.num_heads * model.heads.config.vocab_size),
    )
    for at, targets in zip(places.split(size), came.split(size), strict=True):
        logits = model.draft_logits(hidden[at])
        if sampled:
            q = _probabilities(row, logits.flatten(0, 1))
            ahead = (at[:, None] + 1 + torch.arange(came.shape[1], device=at.device)).clamp_max(
                len(text) - 1
            )
            p = _probabilities(row, model.base_logits(hidden[ahead.flatten()]))
            drawn = rejection_credit(p, q, targets.clamp_min(0).flatten(), ranks)
            credit.append(drawn.unflatten(0, targets.shape) * targets.ge(0)[..., None])
        else:
            credit.append(ranked_credit(logits, targets, ranks))
    empty = torch.zeros(0, came.shape[1], ranks)
    return Recording(
        torch.cat([empty, *(each.float().cpu() for each in credit)]), came.ge(0).cpu(), (count,)
    )


def _came(text: Tensor, places: Tensor, num_heads: int) -> Tensor:
    """[M, K] the token that head k should hold at each place, -1 where the text has ended."""
    ahead = places[:, None] + 2 + torch.arange(num_heads, device=text.device)
    return torch.where(ahead < len(text), text[ahead.clamp_max(len(text) - 1)], -1)


def _probabilities(row: Row, logits: Tensor) -> Tensor:
    """Logits [n, V] as distributions, after those of the row's processors that read no prefix."""
    return row.processors.draft(logits.float()).softmax(-1).double()


def ranked_credit(logits: Tensor, came: Tensor, ranks: int) -> Tensor:
    """[M, K, R] one where head k's r-th best token is the one that came.

    Args:
        logits: [M, K, V] of the heads.
        came: [M, K] token ids, -1 for none.
    """
    rank = (logits > logits.gather(-1, came.clamp_min(0)[..., None])).sum(-1)
    hit = came.ge(0) & (rank < ranks)
    return F.one_hot(rank.clamp_max(ranks - 1), ranks).float() * hit[..., None]


def rejection_credit(
    p: Tensor, q: Tensor, came: Tensor, ranks: int, generator: torch.Generator | None = None
) -> Tensor:
    """[M, R] the probability that the draw of each rank is accepted, given the token that came.

    The other draws are made once, from q without that token; a factor makes up for what this
    changes about their probability, so that the expectation is exact.

    Args:
        p: [M, V] the base model's distribution.
        q: [M, V] the head's.
        came: [M] tokens drawn from p.
    """
    came = came[:, None]
    others = q.scatter(1, came, 0.0)
    (drawn,) = draws(others[None], min(ranks, q.shape[1]), [generator])
    chance, weight, credit = p.gather(1, came), torch.ones_like(q[:, :1]), []
    for token in drawn.split(1, dim=1):
        hit, other = q.gather(1, came), q.gather(1, token)
        credit.append(
            weight
            * torch.minimum(hit, p.gather(1, came))
            / chance.clamp_min(torch.finfo(p.dtype).tiny)
        )
        accepted = (p.gather(1, token) / other.clamp_min(torch.finfo(q.dtype).tiny)).clamp_max(1)
        weight = torch.where(other > 0, weight * (1 - hit) * (1 - accepted), 0.0)
        p, q = normalised((p - q).clamp_min(0)), normalised(q.scatter(1, token, 0.0))
    return F.pad(torch.cat(credit, 1), (0, ranks - drawn.shape[1]))
