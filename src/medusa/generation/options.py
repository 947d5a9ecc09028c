"""Checks of a call of `generate`: options that decoding with heads cannot honour are refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMode

from ..core.acceptance import AcceptancePolicy, Greedy, Rejection, Typical
from ..core.checks import CACHE_ARGUMENTS

POLICIES: dict[str, type[AcceptancePolicy]] = {
    "greedy": Greedy,
    "typical": Typical,
    "rejection": Rejection,
}

ELSEWHERE = "call model.base.generate"

UNSUPPORTED_ARGUMENTS = (
    "assistant_model",
    "custom_generate",
    "inputs_embeds",
    "negative_prompt_ids",
    *CACHE_ARGUMENTS,
)
"""Arguments of transformers' `generate` that have no meaning here, whatever their value."""

UNSUPPORTED_VALUES: dict[str, tuple[tuple[Any, ...], str]] = {
    "guidance_scale": (
        (None, 1),
        f"classifier-free guidance runs the model twice a token: {ELSEWHERE}",
    ),
    "token_healing": (
        (None, False),
        "heal the prompt first: model.base.heal_tokens(input_ids, tokenizer)",
    ),
}
"""Options that are refused: the values that have no effect, and the remedy for others."""

UNSUPPORTED_CACHES = ("paged", "quantized")
"""Cache implementations that change the text or the loop. Others are replaced by `TreeCache`."""

OUTPUTS = ("output_attentions", "output_hidden_states")

MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)

HARMLESS = ("logits_to_keep", "tokenizer", "trust_remote_code", "use_cache")
"""Arguments that other modules read, or that do not change the text."""


def refuse_arguments(arguments: Mapping[str, Any], config: GenerationConfig | None) -> None:
    """Check the arguments of a call, before transformers prepares it.

    Raises:
        ValueError: an argument or option is not supported; names it and the alternative.
    """
    for name in UNSUPPORTED_ARGUMENTS:
        if arguments.get(name) is not None:
            raise ValueError(
                f"generate does not support {name} with Medusa heads; {ELSEWHERE} for it"
            )
    if arguments.get("use_cache") is False:
        raise ValueError(f"use_cache=False: tree verification needs a cache; {ELSEWHERE}")
    _refuse_values(arguments)
    if config is not None:
        _refuse_values(config.to_dict())


def _refuse_values(options: Mapping[str, Any]) -> None:
    for name, (nothing, remedy) in UNSUPPORTED_VALUES.items():
        value = options.get(name)
        if value not in nothing:
            raise ValueError(f"{name}={value!r} is not supported with Medusa heads ({remedy})")
    if options.get("cache_implementation") in UNSUPPORTED_CACHES:
        raise ValueError(
            f"cache_implementation={options['cache_implementation']!r} is not supported with "
            f"Medusa heads: leave it out, or {ELSEWHERE}"
        )


def refuse_options(config: GenerationConfig) -> None:
    """Check a complete configuration, the model's own defaults included; see `refuse_arguments`."""
    _refuse_values(config.to_dict())
    mode = config.get_generation_mode()
    if mode not in MODES:
        kind = mode.value.replace("_", " ")
        mode_options = {
            name: getattr(config, name)
            for name in _MODE_OPTIONS
            if getattr(config, name, None) not in (None, 1)
        }
        described = ", ".join(f"{name}={value!r}" for name, value in mode_options.items())
        raise ValueError(f"{kind} ({described}) is not supported with Medusa heads: {ELSEWHERE}")
    outputs = [name for name in OUTPUTS if getattr(config, name, None)]
    if outputs and config.return_dict_in_generate:
        raise ValueError(
            f"{', '.join(outputs)}: not collected with Medusa heads; call model.base on the "
            "finished text"
        )


_MODE_OPTIONS = (
    "num_beams",
    "constraints",
    "force_words_ids",
    "penalty_alpha",
    "dola_layers",
    "prompt_lookup_num_tokens",
    "assistant_early_exit",
    "use_mtp",
)


def refuse_inputs(base: PreTrainedModel, arguments: Mapping[str, Any]) -> None:
    """Refuse inputs besides token ids, such as images, video or audio.

    transformers renames or encodes some of them while it prepares a call, so the names are checked
    as the user wrote them.

    Raises:
        ValueError: there are such inputs; the message names them.
    """
    options = {
        *GenerationConfig().to_dict(),
        *inspect.signature(base.generate).parameters,
        *HARMLESS,
    }
    unused = [
        name for name, value in arguments.items() if name not in options and value is not None
    ]
    if unused:
        raise ValueError(
            f"{', '.join(unused)}: only token ids are decoded with Medusa heads; {ELSEWHERE} for "
            "others"
        )


def choose_policy(
    acceptance: str | AcceptancePolicy, config: GenerationConfig, temperature: float | None = None
) -> AcceptancePolicy:
    """Return the acceptance policy of a call.

    Without sampling typical acceptance is greedy decoding, as at temperature 0 (section 2.3.1).

    Args:
        acceptance: a policy, its name, or "auto".
        config: the complete configuration.
        temperature: the call's own; that of the configuration may be the model's default.

    Raises:
        ValueError: there is no such policy, or it does not go with `do_sample`.
    """
    if acceptance == "auto":
        acceptance = "rejection" if config.do_sample else "greedy"
    if isinstance(acceptance, str) and acceptance not in POLICIES:
        raise ValueError(
            f"acceptance must be 'auto', {', '.join(map(repr, POLICIES))} or a policy, got "
            f"{acceptance!r}"
        )
    policy = POLICIES[acceptance]() if isinstance(acceptance, str) else acceptance
    if isinstance(policy, Greedy) and config.do_sample:
        raise ValueError(
            "acceptance='greedy' does not sample: drop do_sample=True, or use "
            "acceptance='rejection'"
        )
    if isinstance(policy, Rejection) and not config.do_sample:
        raise ValueError(
            "acceptance='rejection' samples: pass do_sample=True, or use acceptance='greedy'"
        )
    if isinstance(policy, Typical) and not config.do_sample:
        if temperature not in (None, 0, 1):
            raise ValueError(
                f"temperature={temperature} is only applied with do_sample=True: pass that, or "
                "leave it out"
            )
        return Greedy()
    return policy
