"""Recording of the heads' drafts along the model's own answers; all calibration figures use it.

The credit w[k, r] of a position is the probability that the acceptance policy accepts the r-th
candidate of head k there. For greedy decoding it is 1 at the rank of the token that the model
decoded, and 0 elsewhere. For rejection sampling, where candidates and acceptance are random, it is
the probability given the token that the model decoded, estimated without bias from one set of
draws. In both cases the probability of a rank path is the mean over positions of the product of its
credits.

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
from ..core.model import TreeModel
from ..core.request import Row
from .decoding import decode_batch

CHUNK_BYTES = 2**28
"""Memory for the logits of one chunk of positions, with everything computed from them."""
FINGERPRINT_VALUES = 64
"""Number of values of each weight that enter a model's fingerprint."""


@dataclass(frozen=True)
class Recording:
    """Credits at all positions after which a decoding step may start, text after text.

    Attributes:
        credit: [M, K, R] float32; 0 where the text has ended.
        known: [M, K] True where the text is long enough to hold the token that the head predicts.
        lengths: number of positions of each text, M in total; one fewer than the tokens of its
            answer, because no step starts after the last.
    """

    credit: Tensor
    known: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def join(cls, parts: Sequence[Recording]) -> Recording:
        """Return one recording of all texts of several recordings."""
        lengths = tuple(length for part in parts for length in part.lengths)
        return cls(
            torch.cat([part.credit for part in parts]),
            torch.cat([part.known for part in parts]),
            lengths,
        )

    @property
    def num_heads(self) -> int:
        """K."""
        return self.credit.shape[1]

    @cached_property
    def certain(self) -> bool:
        """True if every credit is 0 or 1, as in greedy decoding."""
        return bool(((self.credit == 0) | (self.credit == 1)).all())

    def first(self, num_heads: int) -> Recording:
        """Return the recording of the first heads only."""
        return Recording(self.credit[:, :num_heads], self.known[:, :num_heads], self.lengths)

    def accuracies(self) -> list[list[float]]:
        """Return the heads' accuracies [K][R], the paper's a_k^(i) of appendix C.

        Each is the share of known positions whose token is among head k's best i.
        """
        hits = self.credit.double().sum(0).cumsum(-1)
        shares: list[list[float]] = (hits / self.known.sum(0)[:, None].clamp_min(1)).tolist()
        return shares

    def save(self, file: Path) -> None:
        """Write a safetensors file atomically."""
        with files.replacing(file) as beside:
            save_file(
                {"credit": self.credit, "known": self.known, "lengths": torch.tensor(self.lengths)},
                beside,
            )

    @classmethod
    def load(cls, file: Path) -> Recording:
        """Return the recording that `save` wrote to a file.

        Raises:
            ValueError: the file is broken or holds something else; the message names it.
        """
        try:
            tensors = load_file(file)
            recording = cls(tensors["credit"], tensors["known"], tuple(tensors["lengths"].tolist()))
            recording.check()
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{file} is broken ({error}): delete it, and its batch is recorded again"
            ) from None
        return recording

    def check(self) -> None:
        """Check that the tensors fit each other.

        Raises:
            ValueError: shapes or types do not fit, or a credit is not finite.
        """
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
    """Decode answers to the prompts, and record the heads' credits along them.

    Args:
        prompts: token ids of each prompt.
        arguments: keyword arguments of `generate`: max_new_tokens, do_sample, temperature, ...
        acceptance: the acceptance policy that the tree will serve.
        ranks: R, the number of best tokens recorded for each head.
        batch_size: prompts decoded at once.
        work: folder for finished batches, in which an interrupted recording is resumed. Each
            combination of model, prompts and settings has its own folder there.
        finished: called with the number of texts recorded since the last call.

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
            work = work / _fingerprint(model, prompts, settings)
            held.enter_context(files.locked(work, "--resume"))
            work.mkdir(exist_ok=True)
        parts = []
        for number, batch in enumerate(batches):
            file = work / f"{number * batch_size:06}.safetensors" if work is not None else None
            if file is not None and file.exists():
                parts.append(_load_batch(file, len(batch)))
            else:
                parts.append(_record_batch(model, batch, arguments, acceptance, ranks))
                if file is not None:
                    parts[-1].save(file)
            finished(len(batch))
    return Recording.join(parts)


def _load_batch(file: Path, texts: int) -> Recording:
    """Return the recording of a finished batch, checked to hold as many texts as the batch."""
    recording = Recording.load(file)
    if len(recording.lengths) != texts:
        raise ValueError(
            f"{file} holds {len(recording.lengths)} texts instead of {texts}: delete it, and "
            "record again"
        )
    return recording


def _fingerprint(
    model: TreeModel, prompts: Sequence[Sequence[int]], settings: dict[str, Any]
) -> str:
    """Return a hash of model, prompts and settings, which decide a recording.

    Of each weight only some values are hashed: reading all of a large model would take minutes.
    """
    # the tokenizer has no stable text; it matters only for stop strings, which are settings
    decisive = {name: str(value) for name, value in settings.items() if name != "tokenizer"}
    defaults = [config.to_dict() for config in (model.base.config, model.base.generation_config)]
    for each in defaults:
        for name in ("_name_or_path", "transformers_version"):
            each.pop(name, None)
    digest = hashlib.sha256(
        json.dumps(
            [[list(prompt) for prompt in prompts], decisive, defaults], sort_keys=True, default=str
        ).encode()
    )
    for name, weight in [*model.base.named_parameters(), *model.heads.named_parameters("heads")]:
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.device.type != "meta":  # offloaded weights are not read
            values = weight.detach().flatten()
            sample = values[:: max(1, len(values) // FINGERPRINT_VALUES)].contiguous().cpu()
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
    session = decode_batch(model, prompts, acceptance=acceptance, **arguments)
    sampled = isinstance(session.requests[0].policy, Rejection)
    parts = [
        _record_row(model, row, len(prompt), sampled, ranks)
        for row, prompt in zip(session.rows, prompts, strict=True)
    ]
    return Recording.join(parts)


def _record_row(model: TreeModel, row: Row, prompt: int, sampled: bool, ranks: int) -> Recording:
    """Return the recording of one text.

    Its positions run from the last token of the prompt to the last but one of the answer: after the
    last token no step starts.

    Args:
        prompt: number of tokens of the prompt.
        sampled: the policy is rejection sampling; otherwise it is greedy.
    """
    text = torch.tensor(row.ids, device=model.device)
    count = len(row.ids) - prompt - 1
    places = prompt - 1 + torch.arange(count, device=text.device)
    targets = _targets(text, places, model.heads.config.num_heads)
    hidden = model.hidden_states(text[None])[0]
    credit = []
    size = _chunk_size(model, sampled)
    for chunk, chunk_targets in zip(places.split(size), targets.split(size), strict=True):
        if sampled:
            part = _sampled_credit(model, row, hidden, chunk, chunk_targets, ranks)
        else:
            part = ranked_credit(model.draft_logits(hidden[chunk]), chunk_targets, ranks)
        credit.append(part.float().cpu())
    empty = torch.zeros(0, targets.shape[1], ranks)  # an answer of one token has no chunk
    return Recording(torch.cat([empty, *credit]), targets.ge(0).cpu(), (count,))


def _chunk_size(model: TreeModel, sampled: bool) -> int:
    """Return how many positions can be recorded at once within `CHUNK_BYTES`."""
    config = model.heads.config
    bytes_each = 64 if sampled else 4  # sampling works through several float64 distributions
    return max(1, CHUNK_BYTES // (bytes_each * config.num_heads * config.vocab_size))


def _sampled_credit(
    model: TreeModel, row: Row, hidden: Tensor, places: Tensor, targets: Tensor, ranks: int
) -> Tensor:
    """Return the credits [M, K, R] of rejection sampling at some places of a text.

    Args:
        hidden: [S, H] hidden states of the whole text.
        places: [M] positions in the text.
        targets: [M, K] the token each head predicts, -1 where the text has ended.
    """
    q = _probabilities(row, model.draft_logits(hidden[places]).flatten(0, 1))
    ahead = places[:, None] + 1 + torch.arange(targets.shape[1], device=places.device)
    ahead = ahead.clamp_max(len(hidden) - 1)
    p = _probabilities(row, model.base_logits(hidden[ahead.flatten()]))
    credit = rejection_credit(p, q, targets.clamp_min(0).flatten(), ranks)
    return credit.unflatten(0, targets.shape) * targets.ge(0)[..., None]


def _targets(text: Tensor, places: Tensor, num_heads: int) -> Tensor:
    """Return the token [M, K] that head k should predict at each place, -1 after the text's end."""
    ahead = places[:, None] + 2 + torch.arange(num_heads, device=text.device)
    return torch.where(ahead < len(text), text[ahead.clamp_max(len(text) - 1)], -1)


def _probabilities(row: Row, logits: Tensor) -> Tensor:
    """Return logits [n, V] as distributions.

    They pass through the row's logits processors first, as far as those do not read the prefix.
    """
    return row.processors.draft(logits.float()).softmax(-1).double()


def ranked_credit(logits: Tensor, targets: Tensor, ranks: int) -> Tensor:
    """Return the credits [M, K, R] of greedy decoding: 1 where head k's r-th token is the target.

    Args:
        logits: [M, K, V] of the heads.
        targets: [M, K] token ids that the model decoded, -1 for none.
    """
    rank = (logits > logits.gather(-1, targets.clamp_min(0)[..., None])).sum(-1)
    hit = targets.ge(0) & (rank < ranks)
    return F.one_hot(rank.clamp_max(ranks - 1), ranks).float() * hit[..., None]


def rejection_credit(
    p: Tensor, q: Tensor, targets: Tensor, ranks: int, generator: torch.Generator | None = None
) -> Tensor:
    """Return the credits [M, R] of rejection sampling.

    A credit is the probability that the candidate of a rank is accepted, given the token that the
    model decoded. The other candidates are drawn once, from q without that token; the factor
    `weight` corrects for the change of their probability, so that the expectation is exact.

    Args:
        p: [M, V] the base model's distribution.
        q: [M, V] the head's distribution.
        targets: [M] tokens that the model decoded, drawn from p.
    """
    targets = targets[:, None]
    others = q.scatter(1, targets, 0.0)
    (drawn,) = draws(others[None], min(ranks, q.shape[1]), [generator])
    chance, weight, credit = p.gather(1, targets), torch.ones_like(q[:, :1]), []
    for token in drawn.split(1, dim=1):
        hit, other = q.gather(1, targets), q.gather(1, token)
        credit.append(
            weight
            * torch.minimum(hit, p.gather(1, targets))
            / chance.clamp_min(torch.finfo(p.dtype).tiny)
        )
        accepted = (p.gather(1, token) / other.clamp_min(torch.finfo(q.dtype).tiny)).clamp_max(1)
        weight = torch.where(other > 0, weight * (1 - hit) * (1 - accepted), 0.0)
        # after a rejection the policy goes on with the residual of p and with q without the token
        p, q = normalised((p - q).clamp_min(0)), normalised(q.scatter(1, token, 0.0))
    return F.pad(torch.cat(credit, 1), (0, ranks - drawn.shape[1]))
