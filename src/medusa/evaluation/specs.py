"""Decoding methods by the names that `medusa bench --method` takes.

A name may have options after commas: `medusa,nodes=64`, `draft=FOLDER,gamma=4`,
`server=http://localhost:8000/v1,model=NAME`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from ..core.acceptance import Typical
from ..core.tree import CandidateTree
from ..loading import MedusaModel
from ..training.chat_server import ChatServer
from .methods import LOOKUP, METHODS, Method, transformers_run
from .served import ServedModel

GAMMA = 5
"""Default number of tokens that a draft model proposes."""
NODES, DENSE, ACCEPTANCE = "nodes", "dense", "acceptance"
EPSILON, DELTA = "epsilon", "delta"
GAMMA_OPTION, MODEL = "gamma", "model"
ACCEPTANCES = ("typical", "rejection", "greedy")
OPTIONS: dict[str, tuple[str, ...]] = {
    "medusa": (NODES, DENSE, ACCEPTANCE, EPSILON, DELTA),
    "draft": (GAMMA_OPTION,),
    "server": (MODEL,),
}
"""Options of methods."""
OF_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "generate": {},
    "prompt_lookup": {"prompt_lookup_num_tokens": LOOKUP},
}
"""Methods of transformers on weights as it loads them, and their arguments."""


def method_of(
    spec: str, model: MedusaModel, backbone: Callable[[], PreTrainedModel]
) -> Method | ServedModel:
    """Return the method that a name and its options describe.

    Args:
        spec: `plain`, `medusa`, `generate`, `prompt_lookup`, `generate_packed`,
            `prompt_lookup_packed`, `draft=MODEL` or `server=URL`. `medusa` may have `nodes=N` or
            `dense=5x3` (all combinations of 5 tokens of the first head and 3 of the second) and
            `acceptance=typical|rejection|greedy`, typical acceptance `epsilon=X` and `delta=X`,
            `draft` may have `gamma=N`, and `server` `model=NAME`. Greedy acceptance decodes
            greedily at any temperature.
        model: the model that is measured.
        backbone: loads the backbone as transformers loads it, for transformers' own methods.

    Raises:
        ValueError: there is no such method or option, or a value is wrong; says what there is.
        ConnectionError: a server cannot be reached.
    """
    head, *rest = spec.split(",")
    name, _, value = head.partition("=")
    options = _options(spec, name, rest)
    if name == "draft":
        gamma = _number(spec, options.get(GAMMA_OPTION, str(GAMMA)))
        return _transformers(backbone(), {"assistant_model": _assistant(spec, value, gamma)})
    if name == "server":
        if not value:
            raise ValueError(f"--method {spec}: server needs an address, server=URL")
        return ServedModel(ChatServer(value), options.get(MODEL))
    if name not in METHODS or value:
        names = ", ".join((*METHODS, "draft=MODEL"))
        raise ValueError(f"--method {spec}: there are {names} and server=URL, not {head}")
    if name in OF_TRANSFORMERS:
        return _transformers(backbone(), OF_TRANSFORMERS[name])
    own = _medusa_arguments(spec, options, model) if options else {}
    method = METHODS[name]
    return lambda model, prompt, arguments: method(model, prompt, {**arguments, **own})


def _options(spec: str, name: str, parts: list[str]) -> dict[str, str]:
    found = {}
    for part in parts:
        option, equals, value = part.partition("=")
        if option not in OPTIONS.get(name, ()) or not equals:
            known = ", ".join(OPTIONS.get(name, ())) or "no options"
            raise ValueError(f"--method {spec}: {name} has {known}, not {part}")
        found[option] = value
    return found


def _number(spec: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--method {spec}: {text} is not a positive whole number")
    return int(text)


def _share(spec: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError(f"--method {spec}: {text} is not a number from 0 to 1")
    return share


def _medusa_arguments(spec: str, options: dict[str, str], model: MedusaModel) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if NODES in options and DENSE in options:
        raise ValueError(f"--method {spec}: nodes and dense both choose a tree; give one of them")
    if NODES in options:
        nodes = _number(spec, options[NODES])
        arguments["tree"] = CandidateTree.from_accuracies(model.calibration.accuracies, nodes)
    if DENSE in options:
        widths = [_number(spec, width) for width in options[DENSE].split("x")]
        arguments["tree"] = tree = CandidateTree.dense(widths)
        tree.check_heads(model.heads.config.num_heads, model.heads.config.choices)
    acceptance = options.get(ACCEPTANCE)
    if acceptance not in (None, *ACCEPTANCES):
        raise ValueError(f"--method {spec}: acceptance is one of {', '.join(ACCEPTANCES)}")
    thresholds = {name: _share(spec, options[name]) for name in (EPSILON, DELTA) if name in options}
    if thresholds and acceptance != "typical":
        raise ValueError(f"--method {spec}: epsilon and delta are for acceptance=typical")
    if acceptance == "typical":
        epsilon = thresholds.get(EPSILON, Typical.epsilon)
        arguments["acceptance"] = Typical(epsilon, thresholds.get(DELTA))
    if acceptance == "greedy":
        arguments |= {"do_sample": False, "temperature": None}
    return arguments


def _transformers(base: PreTrainedModel, own: dict[str, Any]) -> Method:
    """Return transformers' `generate` with arguments of its own."""
    return lambda model, prompt, arguments: transformers_run(base, prompt, {**arguments, **own})


def _assistant(spec: str, name: str, gamma: int) -> PreTrainedModel:
    """Return a draft model that always proposes `gamma` tokens (the paper's appendix D)."""
    if not name:
        raise ValueError(f"--method {spec}: draft needs a model, draft=FOLDER or a hub id")
    assistant: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    config = assistant.generation_config
    if config is None:
        raise ValueError(f"--method {spec}: {name} has no generation configuration")
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = gamma, "constant"
    config.assistant_confidence_threshold = 0.0
    return assistant
