"""`GeneratingModel`: generates as transformers' models do, and is used in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..core.acceptance import AcceptancePolicy
from ..core.model import TreeModel
from ..core.schedule import TreeSchedule
from ..core.tree import CandidateTree
from . import Session, finished, prepare, prepare_batch
from .outputs import MedusaGenerateOutput

# pipelines report an error for models whose classes' names they do not know
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["medusa"] = "MedusaModel"


class GeneratingModel(TreeModel):
    """A base model with heads that has the methods of transformers' models for generation.

    transformers' pipelines take it as a model; what they read of it is the base model's.
    """

    @property
    def config(self) -> PreTrainedConfig:
        """The base model's configuration."""
        return self.base.config

    @property
    def generation_config(self) -> GenerationConfig:
        """The base model's own generation configuration, which each call completes."""
        return self.base.generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self.base.generation_config = config

    @property
    def hf_device_map(self) -> dict[str, Any] | None:
        """The devices of the base model's parts, if it was loaded with `device_map`."""
        return getattr(self.base, "hf_device_map", None)

    input_modalities = output_modalities = ("text",)

    def can_generate(self) -> bool:
        """Return True, as transformers' models that have a `generate` do."""
        return True

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Tensor | MedusaGenerateOutput:
        """Generate as transformers' `generate` does, with several tokens per step.

        Greedy text is that of the base model, token for token. Sampled text follows the base
        model's distribution, except with `acceptance="typical"`. Without `do_sample`, all kinds of
        acceptance are greedy.

        Args:
            inputs: token ids [B, P], padded on the left; also as `input_ids`, with
                `attention_mask`. Masked tokens are not part of a prompt. Without inputs, a text
                begins with `bos_token_id`.
            generation_config: as in transformers; its fields may be keyword arguments. Lengths
                count the tokens of a row without its padding.
            acceptance: "auto" (rejection if sampling, otherwise greedy), "greedy", "rejection",
                "typical" or an `AcceptancePolicy`.
            tree: the candidate tree of all steps; by default `model.tree` where it pays.
            generator: source of random numbers, or a list of one for each row; by default torch's
                global one seeds the rows.
            within_positions: end a row where the model's positions end, whatever `max_new_tokens`
                is. They end at `max_position_embeddings`, or where the rotary frequencies change.
            logits_processor, stopping_criteria, stop_strings (with tokenizer), streamer: as in
                transformers.

        Returns:
            Token ids [B, P + T], or a `MedusaGenerateOutput` with statistics if
            `return_dict_in_generate` is True; with the logits of every new token if `output_scores`
            or `output_logits` is True as well.

        Raises:
            ValueError: an option or input is not supported, or a text would outgrow the model's
                positions; names the alternative.
            RuntimeError: no token can be sampled, because the logits hold NaN or infinity, or a
                processor excluded every token.
        """
        return finished(prepare(self, inputs, generation_config, **kwargs))

    def steps(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Session:
        """Return a session that decodes step by step when it is iterated.

        Takes the arguments of `generate`. Each iteration gives the events of one step: the new
        tokens of each sequence, and why it ended.
        """
        return prepare(self, inputs, generation_config, **kwargs)

    def custom_generate(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        *,
        acceptance: str | AcceptancePolicy = "auto",
        tree: CandidateTree | TreeSchedule | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        within_positions: bool = False,
        **kwargs: Any,
    ) -> Tensor | MedusaGenerateOutput:
        """Decode for the base model: `base.generate(**inputs, custom_generate=this_method)`.

        transformers calls it with the batch it has prepared. It passes on neither `streamer` nor
        `tokenizer`: with a streamer or stop strings, call `generate` of this model.

        Args:
            model: the base model of the heads.
            input_ids: [B, P] left-padded prompts.
            logits_processor: of the call and of its configuration.
            stopping_criteria: likewise.
            generation_config: the complete configuration.
            acceptance: as for `generate`; so are tree, generator and within_positions. Pass them to
                `base.generate`.
            kwargs: inputs of the base model's forward, such as attention_mask.

        Raises:
            ValueError: `model` is another model than the base, or as `generate`.
        """
        if model is not self.base:
            raise ValueError(
                "custom_generate was called for another model than the one its heads belong to: "
                "call generate of this MedusaModel's base"
            )
        session = prepare_batch(
            self,
            input_ids,
            generation_config,
            processors=logits_processor,
            criteria=stopping_criteria,
            acceptance=acceptance,
            tree=tree,
            generator=generator,
            within_positions=within_positions,
            **kwargs,
        )
        return finished(session)

    def compute_transition_scores(
        self, sequences: Tensor, scores: tuple[Tensor, ...], normalize_logits: bool = False
    ) -> Tensor:
        """Return the score of each new token, as transformers' method of this name does.

        Args:
            sequences: [B, P + T] of `generate`.
            scores: T tensors [B, V] of `generate(output_scores=True)`, or its `logits`.
            normalize_logits: return log-probabilities instead of logits.

        Returns:
            [B, T]; 0 where a row has ended.
        """
        return self.base.compute_transition_scores(
            sequences, scores, normalize_logits=normalize_logits
        )
