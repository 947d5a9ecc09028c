"""Stop rules: transformers' stopping criteria, and the end of the model's positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import StoppingCriteriaList
from transformers.generation import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)

from ..core.positions import Positions
from ..core.request import FinishReason


class Stop:
    """A request's stop rule, called with its token ids after every new token.

    The two common criteria are computed without a tensor. The rows of a call share the other
    criteria, so that one which waits for a flag ends all rows; one that counts its calls counts
    those of all rows.

    Args:
        criteria: stopping criteria as transformers prepared them.
        device: of the tensors that criteria get.
        end: length at which the model's positions end; None where they do not end the text.
        must_stop_before: raise an error if no criterion has stopped the text at `end`.
        padding: tokens of a batch before the text; criteria get and count them as well.

    Raises:
        ValueError: raised by a call if `must_stop_before` and no criterion stopped the text.
    """

    def __init__(
        self,
        criteria: StoppingCriteriaList,
        device: torch.device,
        end: int | None,
        must_stop_before: bool,
        padding: Sequence[int] = (),
    ):
        lengths = [each.max_length for each in criteria if type(each) is MaxLengthCriteria]
        self.max_length = min(lengths, default=None)
        self.eos = {
            token
            for each in criteria
            if type(each) is EosTokenCriteria
            for token in each.eos_token_id.tolist()
        }
        self.others = [
            each for each in criteria if type(each) not in (MaxLengthCriteria, EosTokenCriteria)
        ]
        self.device, self.end, self.must_stop_before = device, end, must_stop_before
        self.padding = list(padding)

    def __call__(self, ids: list[int]) -> FinishReason | None:
        if ids[-1] in self.eos:
            return "stop"
        padded = self.padding + ids if self.others else []
        text = torch.tensor([padded], device=self.device) if self.others else None
        # as in transformers, every criterion is called: some count their calls
        reasons = [_reason(each) for each in self.others if bool(each(text, None).any())]
        if reasons:
            return reasons[0]
        if self.max_length is not None and len(ids) + len(self.padding) >= self.max_length:
            return "length"
        if self.end is None or len(ids) < self.end:
            return None
        if self.must_stop_before:
            raise ValueError(
                f"a text has {len(ids)} tokens and the model has only {self.end - 1} positions: "
                "pass max_new_tokens so that it ends before, or within_positions=True to end it "
                "there"
            )
        return "length"


def _reason(criterion: object) -> FinishReason:
    if isinstance(criterion, StopStringCriteria):
        return "stop_string"
    return "length" if isinstance(criterion, MaxTimeCriteria) else "stop"


def end_of_positions(positions: Positions, prompt: int, within_positions: bool) -> int | None:
    """Return the length at which the model's positions end a text; None where they do not.

    Args:
        positions: limits of the base model.
        prompt: tokens of the prompt.
        within_positions: end the text where the model was trained to; else only where its table
            of positions ends.

    Raises:
        ValueError: the prompt fills all positions.
    """
    if not within_positions:
        return None if positions.table is None else positions.table + 1
    end = positions.longest(prompt)
    if end is not None and end <= prompt:
        raise ValueError(
            f"the prompt has {prompt} tokens and the model holds {end - 1}: shorten it"
        )
    return end
