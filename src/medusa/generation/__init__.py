"""`generate` as transformers users know it: configuration, processors, stopping, streaming,
batches, statistics.

transformers itself turns configuration and keyword arguments into processors and stopping criteria
(through its public `custom_generate`), once for every row as if the row were alone; so a row's
output never depends on its neighbours.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, StopStringCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from ..core.acceptance import AcceptancePolicy
from ..core.engine import PLAIN, DecodingStats, Row, decode
from ..core.model import TreeModel
from ..core.positions import Positions
from ..core.processing import TreeProcessors, copied_processors
from ..core.schedule import Adaptive, Pace, Steady
from ..core.tree import CandidateTree
from .options import ELSEWHERE, choose_policy, refuse_arguments, refuse_inputs, refuse_options

Prepared = tuple[LogitsProcessorList, StoppingCriteriaList, GenerationConfig]
"""A row's processors, stopping criteria and complete configuration, as transformers prepares them.
"""


@dataclass
class MedusaGenerateOutput(ModelOutput):
    """What `generate(return_dict_in_generate=True)` returns.

    Attributes:
        sequences: [B, P + T] prompts and new tokens; rows that ended early are padded on the right.
        stats: tokens, steps and times of the run.
    """

    sequences: Tensor | None = None
    stats: DecodingStats | None = None


@dataclass
class Session:
    """A request made ready: rows, policy and the pace of trees. Iterating decodes it, a step at a
    time.

    A streamer, if there is one, gets the prompt and then every token, as from transformers'
    `generate`.
    """

    model: TreeModel
    rows: list[Row]
    policy: AcceptancePolicy
    pace: Pace
    config: GenerationConfig
    inputs: Tensor
    streamer: BaseStreamer | None = None
    stats: DecodingStats = field(default_factory=DecodingStats)

    def __iter__(self) -> Iterator[list[list[int]]]:
        """Yield the new tokens of each row, [B][n]; the prefill's single tokens come first."""
        steps = decode(self.model, self.rows, self.policy, self.pace, self.stats)
        return steps if self.streamer is None else self._streamed(steps, self.streamer)

    def _streamed(
        self, steps: Iterator[list[list[int]]], streamer: BaseStreamer
    ) -> Iterator[list[list[int]]]:
        streamer.put(torch.tensor([self.rows[0].ids]))
        for delivered in steps:
            for token in delivered[0]:
                streamer.put(torch.tensor([token]))
            yield delivered
        streamer.end()


def prepare(
    model: TreeModel,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    acceptance: str | AcceptancePolicy = "auto",
    tree: CandidateTree | Pace | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    attention_mask: Tensor | None = None,
    streamer: BaseStreamer | None = None,
    within_positions: bool = False,
    **kwargs: Any,
) -> Session:
    """Check a request and make it ready to decode; the arguments are those of
    `MedusaModel.generate`.
    """
    inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
    refuse_arguments(kwargs, generation_config)
    inputs = _input_ids(model, inputs, generation_config, kwargs)
    prompts = _prompts(model, inputs, attention_mask, generation_config, kwargs)
    base, generation_config, kwargs = _stop_strings_as_criterion(
        model.base, generation_config, kwargs
    )
    prepared = [
        _prepare_row(base, prompt, generation_config, _arguments_of_row(kwargs, number))
        for number, prompt in enumerate(prompts)
    ]
    config = prepared[0][2]
    copies = config.num_return_sequences or 1
    if streamer is not None and copies * len(prompts) > 1:
        raise ValueError(
            "a streamer follows one sequence: pass a batch of one, or iterate model.steps(...)"
        )
    temperature = _setting("temperature", generation_config, GenerationConfig(), kwargs)
    policy = choose_policy(acceptance, config, temperature)
    rows = _rows(model, prompts, prepared, copies, within_positions)
    if config.do_sample:
        for row, own in zip(rows, _generators(generator, len(rows), model.device), strict=True):
            row.generator = own
    pace = _pace(model, tree, config)
    pace.largest.check_heads(model.heads.config.num_heads, model.heads.config.vocab_size)
    uncopied = next(filter(None, (row.processors.uncopied() for row in rows)), None)
    if pace.largest.max_depth and uncopied is not None:
        shared = ", and rows share what cannot be copied" if len(rows) > 1 else ""
        warnings.warn(f"{uncopied}: decoding plainly, one token a step{shared}", stacklevel=3)
        pace = Steady(PLAIN)
    return Session(model, rows, policy, pace, config, inputs.repeat_interleave(copies, 0), streamer)


def generate(
    model: TreeModel,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    **kwargs: Any,
) -> Tensor | MedusaGenerateOutput:
    """Generate as `transformers`' `generate` does, several tokens a step. See
    `MedusaModel.generate`.
    """
    session = prepare(model, inputs, generation_config, **kwargs)
    prompts = [len(row.ids) for row in session.rows]
    for _ in session:
        pass
    sequences = _sequences(session, prompts)
    if session.config.return_dict_in_generate:
        return MedusaGenerateOutput(sequences=sequences, stats=session.stats)
    return sequences


def _rows(
    model: TreeModel,
    prompts: Sequence[Tensor],
    prepared: Sequence[Prepared],
    copies: int,
    within_positions: bool,
) -> list[Row]:
    """The rows to decode, `copies` of each prompt, none longer than the model's positions allow."""
    rows = []
    for prompt, (processors, criteria, config) in zip(prompts, prepared, strict=True):
        ids, longest = prompt.tolist(), math.ceil(config.max_length)
        end = _end(model.positions, len(ids), within_positions)
        for number in range(copies):
            own = LogitsProcessorList(copied_processors(processors)) if number else processors
            stop = _Stop(criteria, model.device, end, must_stop_before=not within_positions)
            rows.append(
                Row(
                    list(ids),
                    longest if end is None else min(longest, end),
                    stop,
                    TreeProcessors(own),
                )
            )
    model.positions.check([len(row.ids) for row in rows], [row.max_length for row in rows])
    return rows


def _end(positions: Positions, prompt: int, within_positions: bool) -> int | None:
    """The length at which a row ends because of the model's positions; None where they do not end
    it.
    """
    if not within_positions:
        return None if positions.table is None else positions.table + 1
    end = positions.longest(prompt)
    if end is not None and end <= prompt:
        raise ValueError(
            f"the prompt has {prompt} tokens and the model holds {end - 1}: shorten it"
        )
    return end


class _Stop:
    """A row's stopping criteria, called after every token; the common two without a tensor.

    Args:
        criteria: as transformers prepared them.
        device: of the tensors that criteria get.
        end: length at which the model's positions end.
        must_stop_before: whether it is an error that no criterion has stopped the row at `end`.
    """

    def __init__(
        self,
        criteria: StoppingCriteriaList,
        device: torch.device,
        end: int | None,
        must_stop_before: bool,
    ):
        self.max_length = min(
            (each.max_length for each in criteria if type(each) is MaxLengthCriteria), default=None
        )
        self.eos = {
            token
            for each in criteria
            if type(each) is EosTokenCriteria
            for token in each.eos_token_id.tolist()
        }
        self.others = StoppingCriteriaList(
            each for each in criteria if type(each) not in (MaxLengthCriteria, EosTokenCriteria)
        )
        self.device, self.end, self.must_stop_before = device, end, must_stop_before

    def __call__(self, ids: list[int]) -> bool:
        if ids[-1] in self.eos or (self.max_length is not None and len(ids) >= self.max_length):
            return True
        if self.others and self.others(torch.tensor([ids], device=self.device), None).any():
            return True
        if self.end is None or len(ids) < self.end:
            return False
        if self.must_stop_before:
            raise ValueError(
                f"a text has {len(ids)} tokens and the model has only {self.end - 1} positions: "
                "pass max_new_tokens so "
                "that it ends before, or within_positions=True to end it there"
            )
        return True


def _stop_strings_as_criterion(
    base: PreTrainedModel, config: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, GenerationConfig | None, dict[str, Any]]:
    """The request with its stop strings among the stopping criteria.

    transformers would need the tokenizer for them, and does not pass it on beside
    `custom_generate`. Where the base model's own configuration names them, a shallow copy of the
    model stands in for it.
    """
    strings = _setting("stop_strings", config, base.generation_config, kwargs)
    if not strings:
        return base, config, kwargs
    if kwargs.get("tokenizer") is None:
        raise ValueError(
            "stop_strings are compared with decoded text: pass tokenizer=... to generate as well"
        )
    base, config = copy.copy(base), copy.copy(config)
    base.generation_config = copy.copy(base.generation_config)
    for each in (base.generation_config, config):
        if each is not None:
            each.stop_strings = None
    criteria = [
        *(kwargs.get("stopping_criteria") or ()),
        StopStringCriteria(kwargs["tokenizer"], strings),
    ]
    kept = {
        name: value for name, value in kwargs.items() if name not in ("stop_strings", "tokenizer")
    }
    return base, config, {**kept, "stopping_criteria": StoppingCriteriaList(criteria)}


def _prepare_row(
    base: PreTrainedModel, prompt: Tensor, config: GenerationConfig | None, kwargs: dict[str, Any]
) -> Prepared:
    """What transformers would decode this prompt with, were it alone.

    Raises:
        ValueError: the request holds an option or an input that decoding with heads does not
            support.
    """

    def captured(_model: Any, input_ids: Tensor, **prepared: Any) -> Prepared:
        refuse_inputs(base, kwargs)
        refuse_options(prepared["generation_config"])
        return (
            prepared["logits_processor"],
            prepared["stopping_criteria"],
            prepared["generation_config"],
        )

    return base.generate(
        prompt[None],
        config,
        attention_mask=torch.ones_like(prompt)[None],
        custom_generate=captured,
        **kwargs,
    )


def _arguments_of_row(kwargs: dict[str, Any], number: int) -> dict[str, Any]:
    """The request's arguments for one of its prompts, which is prepared as if it were alone.

    The row gets its own copy of processors that may remember, and its own number where
    `prefix_allowed_tokens_fn(row, ids)` asks for one.
    """
    own = dict(kwargs)
    processors, allowed = kwargs.get("logits_processor"), kwargs.get("prefix_allowed_tokens_fn")
    if processors is not None:
        own["logits_processor"] = LogitsProcessorList(copied_processors(processors))
    if allowed is not None:
        own["prefix_allowed_tokens_fn"] = lambda _, ids: allowed(number, ids)
    return own


def _input_ids(
    model: TreeModel, inputs: Tensor | None, config: GenerationConfig | None, kwargs: dict[str, Any]
) -> Tensor:
    """Token ids [B, P] on the model's device; without any, the token that begins a text, as
    transformers has it.

    Raises:
        ValueError: these are no token ids of this model.
    """
    if inputs is None:
        begin = _setting("bos_token_id", config, model.base.generation_config, kwargs)
        if begin is None:
            raise ValueError(
                "there is no prompt: pass input_ids, or bos_token_id, the token that begins a text"
            )
        return torch.tensor([[begin]], device=model.device)
    if (
        not isinstance(inputs, Tensor)
        or inputs.dtype not in (torch.long, torch.int)
        or inputs.ndim != 2
    ):
        told = (
            f"{inputs.dtype} {list(inputs.shape)}"
            if isinstance(inputs, Tensor)
            else type(inputs).__name__
        )
        raise ValueError(f"input_ids must be a tensor of token ids [batch, length], got {told}")
    if not inputs.numel():
        raise ValueError(
            f"input_ids must have at least one row and one token a row, got {list(inputs.shape)}"
        )
    vocabulary = model.base.get_input_embeddings().num_embeddings
    if inputs.min() < 0 or inputs.max() >= vocabulary:
        raise ValueError(
            f"input_ids must lie in 0 to {vocabulary - 1}, the model's vocabulary; got "
            f"{int(inputs.min())} to "
            f"{int(inputs.max())}"
        )
    return inputs.to(model.device)


def _prompts(
    model: TreeModel,
    inputs: Tensor,
    attention_mask: Tensor | None,
    config: GenerationConfig | None,
    kwargs: dict[str, Any],
) -> list[Tensor]:
    """The rows without what their mask leaves out: left padding, and holes.

    Raises:
        ValueError: the mask has another shape, a row ends in masked tokens, a row of a
            sliding-window model has holes, over which transformers' windows count columns, or
            positions are given that do not follow from the mask.
    """
    if attention_mask is None:
        pad = _setting("pad_token_id", config, model.base.generation_config, kwargs)
        eos = _setting("eos_token_id", config, model.base.generation_config, kwargs)
        real = (
            inputs.ne(pad)
            if pad is not None and pad not in _ends(eos)
            else torch.ones_like(inputs, dtype=torch.bool)
        )
        attention_mask = real.int().cummax(1).values
    mask = attention_mask.to(model.device).bool()
    if mask.shape != inputs.shape:
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)}, input_ids {list(inputs.shape)}"
        )
    if not mask[:, -1].all():
        row = int(mask[:, -1].int().argmin())
        raise ValueError(
            f"row {row} of attention_mask ends in 0: pad on the left (tokenizer.padding_side = "
            "'left'), so that every "
            "row ends in a token of its prompt"
        )
    positions = kwargs.pop("position_ids", None)
    if positions is not None and not torch.equal(
        positions.to(mask.device)[mask], (mask.cumsum(1) - 1)[mask]
    ):
        raise ValueError(
            f"position_ids: only those that follow from attention_mask are decoded; {ELSEWHERE} "
            "for others"
        )
    holes = mask[:, 1:] < mask[:, :-1]
    if holes.any() and any(model.windows.values()):
        row, column = holes.nonzero()[0].tolist()
        raise ValueError(
            f"attention_mask has a hole in row {row} at column {column + 1}, and this model has "
            "sliding windows: take "
            "the masked tokens out of input_ids"
        )
    return [row[row_mask] for row, row_mask in zip(inputs, mask, strict=True)]


def _setting(
    name: str, config: GenerationConfig | None, default: GenerationConfig, kwargs: dict[str, Any]
) -> Any:
    for value in (kwargs.get(name), getattr(config, name, None), getattr(default, name, None)):
        if value is not None:
            return value
    return None


def _ends(eos: int | list[int] | None) -> list[int]:
    """The end tokens of a configuration, which names one, several or none."""
    if eos is None:
        return []
    return eos if isinstance(eos, list) else [eos]


def _pace(model: TreeModel, tree: CandidateTree | Pace | None, config: GenerationConfig) -> Pace:
    """A tree that is asked for is always used; the model's own only as long as it pays."""
    if tree is None:
        return Adaptive(
            model.tree, model.calibration, None if config.do_sample else model.step_times
        )
    return Steady(tree) if isinstance(tree, CandidateTree) else tree


def _generators(
    given: torch.Generator | Sequence[torch.Generator] | None, rows: int, device: torch.device
) -> Sequence[torch.Generator]:
    """One generator a row, seeded from the one given or from torch's global one."""
    if given is None or isinstance(given, torch.Generator):
        seeds = torch.randint(
            2**62, (rows,), generator=given, device=given.device if given is not None else None
        )
        return [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
    if len(given) != rows:
        raise ValueError(f"one generator a sequence is needed: {rows}, got {len(given)}")
    return [
        each if each.device.type == device.type else _generators(each, 1, device)[0]
        for each in given
    ]


def _sequences(session: Session, prompts: list[int]) -> Tensor:
    """[B, P + T]: the inputs as they came and the new tokens, padded on the right, as transformers
    returns them.
    """
    new = [row.ids[prompt:] for row, prompt in zip(session.rows, prompts, strict=True)]
    pad = session.config.pad_token_id
    if pad is None:
        pad = next(iter(_ends(session.config.eos_token_id)), 0)
    width = max(map(len, new))
    padded = torch.tensor(
        [tokens + [pad] * (width - len(tokens)) for tokens in new], device=session.inputs.device
    )
    return torch.cat([session.inputs, padded], dim=1)
