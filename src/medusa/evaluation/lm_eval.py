"""Models with heads in EleutherAI's lm-evaluation-harness, under the name "medusa".

    python -m medusa.evaluation.lm_eval --model medusa --model_args pretrained=HEADS --tasks gsm8k

Tasks that generate are decoded with the heads; likelihoods are the base model's.
"""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import MultiTokenEOSCriteria
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ..generation.outputs import MedusaGenerateOutput
from ..loading import MedusaModel
from ..loading.model import load
from ..loading.named import NamedModel


@register_model("medusa")
class MedusaLM(HFLM):
    """The harness's model of transformers, whose `generate` decodes with Medusa heads.

    Args:
        pretrained: folder or hub id of heads, or a model.
        tokenizer: by default the base model's own; needed with a model.
        base: folder or hub id of the base model, in place of the one that the heads name.
        revision: of `pretrained`.
        dtype: of the base model; "auto" is the checkpoint's own where it is fast.
        device: where the model runs; by default where transformers puts it.
        kwargs: other arguments of the harness's `HFLM`, such as batch_size and max_length.
    """

    def __init__(
        self,
        pretrained: str | MedusaModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        base: str | None = None,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | None = None,
        **kwargs: Any,
    ):
        if isinstance(pretrained, str):
            of_heads = {} if revision is None else {"revision": revision}
            named = NamedModel.find(pretrained, base, dtype=dtype, **of_heads)
            self.medusa, own_tokenizer = load(named, device=device)
            tokenizer = tokenizer or own_tokenizer
        else:
            self.medusa = pretrained
        super().__init__(self.medusa.base, tokenizer=tokenizer, **kwargs)

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        """Generate as the harness does, with heads."""
        call = {"custom_generate": self._decoded, **generation_kwargs}
        sequences: Tensor = super()._model_generate(context, max_length, stop, **call)
        return sequences

    def _decoded(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        stopping_criteria: StoppingCriteriaList,
        *,
        acceptance: str = "auto",
        **prepared: Any,
    ) -> Tensor | MedusaGenerateOutput:
        """Decode a batch that transformers has prepared."""
        criteria = StoppingCriteriaList(
            Until(each.sequence, self.tokenizer, each.initial_decoder_input_length)
            if isinstance(each, MultiTokenEOSCriteria)
            else each
            for each in stopping_criteria
        )
        return self.medusa.custom_generate(
            model, input_ids, stopping_criteria=criteria, acceptance=acceptance, **prepared
        )


class Until(StoppingCriteria):
    """Stops a text that holds a string. The harness's own criterion must get whole batches.

    Args:
        sequence: the string.
        tokenizer: decodes the text.
        prompt: number of tokens in front of it.
    """

    def __init__(self, sequence: str, tokenizer: PreTrainedTokenizerBase, prompt: int):
        self.sequence, self.tokenizer, self.prompt = sequence, tokenizer, prompt

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt :])
        return torch.tensor([self.sequence in text for text in texts], device=input_ids.device)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
