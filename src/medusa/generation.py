"""`generate` as transformers users know it: configuration, processors, stopping, streaming, batches, statistics.

transformers itself turns configuration and keyword arguments into processors and stopping criteria (through its public
`custom_generate`), once for every row as if the row were alone; so a row's output never depends on its neighbours.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, StopStringCriteria
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .acceptance import AcceptancePolicy, Greedy, Rejection, Typical
from .decoding import PLAIN, DecodingStats, Row, decode
from .model import TreeModel, check_length
from .pace import Adaptive, Pace, Steady
from .processing import TreeProcessors, copied_processors
from .tree import CandidateTree

POLICIES: dict[str, type[AcceptancePolicy]] = {"greedy": Greedy, "typical": Typical, "rejection": Rejection}

UNSUPPORTED = {
    "num_beams": (1, "beam search explores other texts than decoding one: call model.base.generate"),
    "penalty_alpha": (None, "contrastive search: call model.base.generate, or sample with top_k"),
    "dola_layers": (None, "DoLa decoding: call model.base.generate"),
    "prompt_lookup_num_tokens": (None, "prompt lookup drafts on its own: call model.base.generate without heads"),
    "guidance_scale": (None, "classifier-free guidance runs the model twice a token: call model.base.generate"),
    "output_attentions": (False, "call model.base on the finished text instead"),
    "output_hidden_states": (False, "call model.base on the finished text instead"),
    "output_scores": (False, "call model.base on the finished text instead"),
    "output_logits": (False, "call model.base on the finished text instead"),
    "token_healing": (False, "heal the prompt first: model.base.heal_tokens(input_ids, tokenizer)"),
}
"""Generation options that cannot be honoured: the value that asks for nothing, and what to do instead."""
UNSUPPORTED_ARGUMENTS = (
    "assistant_model",
    "inputs_embeds",
    "past_key_values",
    "negative_prompt_ids",
    "custom_generate",
    "position_ids",
)


USED_INPUTS = ("logits_processor", "stopping_criteria", "generation_config", "use_cache")
"""What transformers prepares that decoding uses; other arguments it passes on are inputs of the model."""


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
    """A request made ready: rows, policy and the pace of trees. Iterating decodes it, a step at a time."""

    model: TreeModel
    rows: list[Row]
    policy: AcceptancePolicy
    pace: Pace
    config: GenerationConfig
    inputs: Tensor
    stats: DecodingStats = field(default_factory=DecodingStats)

    def __iter__(self) -> Iterator[list[list[int]]]:
        """Yields the new tokens of each row, [B][n]; the prefill's single tokens come first."""
        return decode(self.model, self.rows, self.policy, self.pace, self.stats)


def prepare(
    model: TreeModel,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    acceptance: str | AcceptancePolicy = "auto",
    tree: CandidateTree | Pace | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Session:
    """Check a request and make it ready to decode; the arguments are those of `generate`."""
    inputs = kwargs.pop("input_ids", None) if inputs is None else inputs
    _refuse(kwargs, generation_config)
    prompts = _prompts(model, inputs, attention_mask, generation_config, kwargs)
    base, generation_config, kwargs = _stop_strings_as_criterion(model.base, generation_config, kwargs)
    prepared = [
        _prepare_row(base, prompt, generation_config, _arguments_of_row(kwargs, number))
        for number, prompt in enumerate(prompts)
    ]
    config = prepared[0][2]
    _refuse({}, config)
    copies = config.num_return_sequences or 1
    prepared = [
        (LogitsProcessorList(copied_processors(processors)) if copy_number else processors, criteria, row_config)
        for processors, criteria, row_config in prepared
        for copy_number in range(copies)
    ]
    prompts = [prompt for prompt in prompts for _ in range(copies)]
    generators = _generators(generator, len(prompts), model.device) if config.do_sample else [None] * len(prompts)
    rows = [
        Row(prompt.tolist(), each.max_length, _Stop(criteria, model.device), TreeProcessors(processors), own_generator)
        for prompt, (processors, criteria, each), own_generator in zip(prompts, prepared, generators, strict=True)
    ]
    pace = _pace(model, tree, config)
    pace.largest.check_heads(model.heads.config.num_heads)
    if pace.largest.max_depth and not all(row.processors.copyable() for row in rows):
        warnings.warn(
            "a logits processor cannot be copied per branch: decoding plainly, one token a step", stacklevel=3
        )
        pace = Steady(PLAIN)
    for row in rows:
        check_length(model.base, len(row.ids), row.max_length)
    return Session(model, rows, _policy(acceptance, config), pace, config, inputs.repeat_interleave(copies, 0))


@torch.no_grad()
def generate(
    model: TreeModel,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    streamer: BaseStreamer | None = None,
    **kwargs: Any,
) -> Tensor | MedusaGenerateOutput:
    """Generate as `transformers`' `generate` does, several tokens a step. See `MedusaModel.generate`."""
    session = prepare(model, inputs, generation_config, **kwargs)
    if streamer is not None and len(session.rows) > 1:
        raise ValueError("a streamer follows one sequence: pass a batch of one, or iterate model.steps(...)")
    if streamer is not None:
        streamer.put(torch.tensor([session.rows[0].ids]))
    prompts = [len(row.ids) for row in session.rows]
    for delivered in session:
        if streamer is not None:
            for token in delivered[0]:
                streamer.put(torch.tensor([token]))
    if streamer is not None:
        streamer.end()
    sequences = _sequences(session, prompts)
    if session.config.return_dict_in_generate:
        return MedusaGenerateOutput(sequences=sequences, stats=session.stats)
    return sequences


class _Stop:
    """A row's stopping criteria, called after every token; the common two without a tensor."""

    def __init__(self, criteria: StoppingCriteriaList, device: torch.device):
        self.max_length = min((each.max_length for each in criteria if type(each) is MaxLengthCriteria), default=None)
        self.eos = {
            token for each in criteria if type(each) is EosTokenCriteria for token in each.eos_token_id.tolist()
        }
        self.others = StoppingCriteriaList(
            each for each in criteria if type(each) not in (MaxLengthCriteria, EosTokenCriteria)
        )
        self.device = device

    def __call__(self, ids: list[int]) -> bool:
        if ids[-1] in self.eos or (self.max_length is not None and len(ids) >= self.max_length):
            return True
        return bool(self.others) and bool(self.others(torch.tensor([ids], device=self.device), None).any())


def _stop_strings_as_criterion(
    base: PreTrainedModel, config: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, GenerationConfig | None, dict[str, Any]]:
    """The request with its stop strings among the stopping criteria.

    transformers would need the tokenizer for them, and does not pass it on beside `custom_generate`. Where the base
    model's own configuration names them, a shallow copy of the model stands in for it.
    """
    strings = _setting("stop_strings", config, base.generation_config, kwargs)
    if not strings:
        return base, config, kwargs
    if kwargs.get("tokenizer") is None:
        raise ValueError("stop_strings are compared with decoded text: pass tokenizer=... to generate as well")
    base, config = copy.copy(base), copy.copy(config)
    base.generation_config = copy.copy(base.generation_config)
    for each in (base.generation_config, config):
        if each is not None:
            each.stop_strings = None
    criteria = [*(kwargs.get("stopping_criteria") or ()), StopStringCriteria(kwargs["tokenizer"], strings)]
    kept = {name: value for name, value in kwargs.items() if name not in ("stop_strings", "tokenizer")}
    return base, config, {**kept, "stopping_criteria": StoppingCriteriaList(criteria)}


def _prepare_row(
    base: PreTrainedModel, prompt: Tensor, config: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[LogitsProcessorList, StoppingCriteriaList, GenerationConfig]:
    """What transformers would decode this prompt with, were it alone."""

    def captured(_model: Any, input_ids: Tensor, **prepared: Any) -> tuple[Any, ...]:
        unused = [name for name in prepared if name in kwargs and name not in USED_INPUTS and kwargs[name] is not None]
        if unused:
            raise ValueError(f"{', '.join(unused)}: only token ids are decoded with Medusa heads; leave it out")
        return prepared["logits_processor"], prepared["stopping_criteria"], prepared["generation_config"]

    return base.generate(
        prompt[None], config, attention_mask=torch.ones_like(prompt)[None], custom_generate=captured, **kwargs
    )


def _arguments_of_row(kwargs: dict[str, Any], number: int) -> dict[str, Any]:
    """The request's arguments for one of its prompts, which is prepared as if it were alone.

    The row gets its own copy of processors that may remember, where they can be copied, and its own number where
    `prefix_allowed_tokens_fn(row, ids)` asks for one.
    """
    own = dict(kwargs)
    processors, allowed = kwargs.get("logits_processor"), kwargs.get("prefix_allowed_tokens_fn")
    if processors is not None and TreeProcessors(processors).copyable():
        own["logits_processor"] = LogitsProcessorList(copied_processors(processors))
    if allowed is not None:
        own["prefix_allowed_tokens_fn"] = lambda _, ids: allowed(number, ids)
    return own


def _prompts(
    model: TreeModel,
    inputs: Tensor | None,
    attention_mask: Tensor | None,
    config: GenerationConfig | None,
    kwargs: dict[str, Any],
) -> list[Tensor]:
    """The rows without their left padding."""
    if inputs is None or inputs.ndim != 2 or inputs.shape[1] == 0 or inputs.is_floating_point():
        shape = "nothing" if inputs is None else f"{inputs.dtype} {list(inputs.shape)}"
        raise ValueError(f"input_ids must be token ids [batch, length] with at least one token a row, got {shape}")
    inputs = inputs.to(model.device)
    if attention_mask is None:
        pad = _setting("pad_token_id", config, model.base.generation_config, kwargs)
        eos = _setting("eos_token_id", config, model.base.generation_config, kwargs)
        real = (
            inputs.ne(pad) if pad is not None and pad not in _ends(eos) else torch.ones_like(inputs, dtype=torch.bool)
        )
        attention_mask = real.int().cummax(1).values
    mask = attention_mask.to(model.device).bool()
    if mask.shape != inputs.shape:
        raise ValueError(f"attention_mask has shape {list(mask.shape)}, input_ids {list(inputs.shape)}")
    if not mask[:, -1].all() or (mask[:, 1:] < mask[:, :-1]).any():
        raise ValueError("prompts must be padded on the left: set tokenizer.padding_side = 'left'")
    return [row[row_mask] for row, row_mask in zip(inputs, mask, strict=True)]


def _setting(name: str, config: GenerationConfig | None, default: GenerationConfig, kwargs: dict[str, Any]) -> Any:
    for value in (kwargs.get(name), getattr(config, name, None), getattr(default, name, None)):
        if value is not None:
            return value
    return None


def _ends(eos: int | list[int] | None) -> list[int]:
    """The end tokens of a configuration, which names one, several or none."""
    if eos is None:
        return []
    return eos if isinstance(eos, list) else [eos]


def _refuse(kwargs: dict[str, Any], config: GenerationConfig | None) -> None:
    for name in UNSUPPORTED_ARGUMENTS:
        if kwargs.get(name) is not None:
            raise ValueError(f"generate does not support {name} with Medusa heads; call model.base.generate for it")
    if kwargs.get("use_cache") is False:
        raise ValueError("use_cache=False: tree verification needs a cache; call model.base.generate")
    for source in (kwargs, config.to_dict() if config is not None else {}):
        for name, (nothing, remedy) in UNSUPPORTED.items():
            value = source.get(name)
            if value is not None and value != nothing:
                raise ValueError(f"{name}={value!r} is not supported with Medusa heads ({remedy})")


def _policy(acceptance: str | AcceptancePolicy, config: GenerationConfig) -> AcceptancePolicy:
    if acceptance == "auto":
        acceptance = "rejection" if config.do_sample else "greedy"
    if isinstance(acceptance, str) and acceptance not in POLICIES:
        raise ValueError(f"acceptance must be 'auto', {', '.join(map(repr, POLICIES))} or a policy, got {acceptance!r}")
    policy = POLICIES[acceptance]() if isinstance(acceptance, str) else acceptance
    if isinstance(policy, Rejection) and not config.do_sample:
        raise ValueError("acceptance='rejection' samples: pass do_sample=True, or use acceptance='greedy'")
    if isinstance(policy, Greedy) and config.do_sample:
        raise ValueError("acceptance='greedy' does not sample: drop do_sample=True, or use acceptance='rejection'")
    return policy


def _pace(model: TreeModel, tree: CandidateTree | Pace | None, config: GenerationConfig) -> Pace:
    """A tree that is asked for is always used; the model's own only as long as it pays."""
    if tree is None:
        return Adaptive(model.tree, model.calibration, None if config.do_sample else model.step_times)
    return Steady(tree) if isinstance(tree, CandidateTree) else tree


def _generators(
    given: torch.Generator | Sequence[torch.Generator] | None, rows: int, device: torch.device
) -> Sequence[torch.Generator]:
    """One generator a row, seeded from the one given or from torch's global one."""
    if given is None or isinstance(given, torch.Generator):
        seeds = torch.randint(2**62, (rows,), generator=given, device=given.device if given is not None else None)
        return [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
    if len(given) != rows:
        raise ValueError(f"one generator a sequence is needed: {rows}, got {len(given)}")
    return [each if each.device.type == device.type else _generators(each, 1, device)[0] for each in given]


def _sequences(session: Session, prompts: list[int]) -> Tensor:
    """[B, P + T]: the inputs as they came and the new tokens, padded on the right, as transformers returns them."""
    new = [row.ids[prompt:] for row, prompt in zip(session.rows, prompts, strict=True)]
    pad = session.config.pad_token_id
    if pad is None:
        pad = next(iter(_ends(session.config.eos_token_id)), 0)
    width = max(map(len, new))
    padded = torch.tensor([tokens + [pad] * (width - len(tokens)) for tokens in new], device=session.inputs.device)
    return torch.cat([session.inputs, padded], dim=1)
