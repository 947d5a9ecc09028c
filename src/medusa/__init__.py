"""Medusa: several tokens a step from a Hugging Face causal language model, with the same text.

from medusa import MedusaModel

model = MedusaModel.from_pretrained(heads)
model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=200)
"""

from importlib.metadata import version

from .acceptance import AcceptancePolicy, Greedy, Rejection, Typical
from .decoding import PLAIN, DecodingStats
from .generation import MedusaGenerateOutput, Session
from .heads import MedusaConfig, MedusaHeads
from .pretrained import MedusaModel
from .tree import CandidateTree

__version__ = version("medusa-llm")

__all__ = [
    "PLAIN",
    "AcceptancePolicy",
    "CandidateTree",
    "DecodingStats",
    "Greedy",
    "MedusaConfig",
    "MedusaGenerateOutput",
    "MedusaHeads",
    "MedusaModel",
    "Rejection",
    "Session",
    "Typical",
]
