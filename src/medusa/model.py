"""`TreeModel`: a base model and its heads, run together. It does not decode, and knows nothing of files.

Nothing is hung on the base model: what its lm_head reads is captured by a hook that lives for one forward.
Shapes: B rows, P prompt columns, N tree nodes, H hidden size, V vocabulary, C cache columns.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from .backends import PackedLayers, packed_heads, worth_packing
from .cache import TreeCache
from .capture import Captures
from .heads import LogitRule, MedusaConfig, MedusaHeads
from .pace import UNCALIBRATED, Calibration, StepTimes
from .positions import Positions
from .programs import Programs
from .tree import CandidateTree

Prepack = Literal["half"] | bool | None
TREE_ATTENTION = ("eager", "sdpa", "flex_attention")
"""Attention implementations that take a mask of any shape, as a tree needs."""
ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Layout:
    """What a step needs to know of the base model. Configurations are slow to ask, so a request asks once.

    Attributes:
        lm_head: the output projection.
        windows: for each kind of attention layer how many positions back it sees; None is all of them.
        flex: whether masks are flex attention's.
        dtype: of the hidden states, and of masks.
    """

    lm_head: nn.Module
    windows: Mapping[str, int | None]
    flex: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, base: PreTrainedModel) -> Layout:
        config = base.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = sorted(set(getattr(config, "layer_types", None) or ()))
        windows = {kind: window if kind == "sliding_attention" else None for kind in kinds}
        flex = config._attn_implementation == "flex_attention"
        return cls(base.get_output_embeddings(), windows or {"all": window}, flex, base.dtype)


class TreeModel(nn.Module):
    """A causal language model and the Medusa heads that speed it up.

    Args:
        base: any decoder-only transformers model with an ordinary key-value cache.
        heads: heads made for it.
        tree: the candidates to verify each step; by default the one for uncalibrated heads.
        capture: verify with shapes that stay as they are for long, on a GPU as a captured graph. None does so on GPUs.
        compiled: verify by programs that are compiled at the first prefill (CPU only), one for plain decoding and one
            for trees; again for batches. That takes a C++ compiler and some seconds to a minute, and frees each step of
            the Python between operators. Where it fails, a warning says so and this is False from then on.
        calibration: what was measured of the heads on this machine; decoding judges by it whether the tree pays.
        prepack: run the linear layers on packed copies of their weights (CPU only). None does so where it helps;
            False never does. "half" packs what float16 holds of a float32 model in 16 bits; sums stay in float32.
        owns_base: nobody else holds the base model, so that dense weights which are packed too may be freed; they
            come back when asked for. Otherwise packing takes the weights' memory a second time.

    Raises:
        ValueError: the base cannot verify a tree, or heads or tree do not fit it.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        heads: MedusaHeads,
        tree: CandidateTree | None = None,
        prepack: Prepack = None,
        owns_base: bool = False,
        calibration: Calibration = UNCALIBRATED,
        capture: bool | None = None,
        compiled: bool = False,
    ):
        super().__init__()
        check_base(base)
        check_heads(base, heads.config)
        _check_switches(prepack, capture, compiled)
        self.base = base
        self.positions = Positions.of(base)
        self.heads = heads
        self.tree = tree if tree is not None else CandidateTree.default(heads.config.num_heads)
        self.tree.check_heads(heads.config.num_heads, heads.config.vocab_size)
        self.prepack = prepack
        self.owns_base = owns_base
        self.calibration = calibration
        self.step_times = StepTimes()
        self.capture = capture
        self.captures = Captures()
        self.compiled = compiled
        self.programs = Programs()
        self._state: tuple[Any, ...] = ()  # of the base model: what is captured or compiled was so for this one
        self._idle_cache: TreeCache | None = None
        self._layout = Layout.of(base)
        self.packed_layers = PackedLayers()
        self._running_heads: tuple[nn.Module, ...] = ()  # in a tuple, so that they are no submodule

    @property
    def running_heads(self) -> nn.Module:
        """The heads as decoding runs them, packed or not."""
        return self._running_heads[0] if self._running_heads else self.heads

    def refresh(self) -> None:
        """Pack the weights where they were not packed yet or have changed since; every prefill does.

        Raises:
            ValueError: the heads no longer fit the base model, or a switch has no such value, or the model is to be
                compiled, and is not on the CPU or runs flex attention.
        """
        _check_switches(self.prepack, self.capture, self.compiled)
        check_heads(self.base, self.heads.config)
        if self.compiled and self.device.type != "cpu":
            raise ValueError("compiled=True is for models on the CPU; on a GPU steps are captured without it")
        self._layout = Layout.of(self.base)
        if self.compiled and self._layout.flex:
            raise ValueError("compiled=True is for eager and sdpa attention: base.set_attn_implementation('sdpa')")
        if not (worth_packing(self.base) if self.prepack is None else self.prepack):
            self.packed_layers, self._running_heads = PackedLayers(), ()
            return
        half = self.prepack == "half"
        if self.packed_layers.half != half:
            self.packed_layers.unpack()
            self.packed_layers = PackedLayers(half)
        self.packed_layers.refresh(self.base)
        self._running_heads = (packed_heads(self.heads, self.running_heads, half),)
        if self.owns_base:
            self.packed_layers.release(self.base)

    @property
    def captures_steps(self) -> bool:
        """Whether requests run with shapes that can be captured."""
        return capturable(self.base) if self.capture is None else self.capture

    @property
    def windows(self) -> Mapping[str, int | None]:
        """How many positions back each kind of attention layer sees; None is all of them."""
        return self._layout.windows

    @property
    def lm_head(self) -> nn.Module:
        """The base model's output projection."""
        return self.base.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return running_device(self.base)

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def draft_logits(self, hidden: Tensor, first: int | None = None) -> Tensor:
        """The logits [B, K, V] of all heads, or of the `first`, for one hidden state a row [B, H]."""
        hidden = hidden.to(next(self.heads.parameters(), hidden).device)
        lm_head = self._layout.lm_head
        with self.packed_layers.running(only=lm_head):
            logits: Tensor = self.running_heads(hidden, lm_head, first)
        return logits.transpose(0, 1)

    def base_logits(self, hidden: Tensor) -> Tensor:
        """The base model's own logits [..., V] for hidden states [..., H]."""
        with self.packed_layers.running(only=self.lm_head):
            logits: Tensor = self.lm_head(hidden)
        return LogitRule.of(self.base.config.get_text_config())(logits)

    def new_cache(self, expected: int, longest: list[int] | None = None) -> TreeCache:
        """A cache for `expected` columns (prompt, new tokens and nodes) and rows of at most `longest[b]` tokens."""
        layers = self.base.config.get_text_config().num_hidden_layers
        cache = TreeCache(layers, expected, longest, static=self.captures_steps, named=self.compiled)
        idle, self._idle_cache = self._idle_cache, None
        if idle is not None and cache.slots.static and longest and idle.fits(len(longest), self.dtype, self.device):
            cache.reuse(idle)
        return cache

    @contextmanager
    def request_cache(self, expected: int, longest: list[int]) -> Iterator[TreeCache]:
        """A cache for one request; captured steps of the next one write where it did."""
        cache = self.new_cache(expected, longest)
        try:
            yield cache
        finally:
            self._idle_cache = cache if cache.slots.static else None

    def prefill(self, input_ids: Tensor, attention_mask: Tensor, cache: TreeCache) -> tuple[Tensor, Tensor]:
        """Run left-padded prompts [B, P]; returns the last logits [B, V] and hidden states [B, H]."""
        width = input_ids.shape[1]
        padding = (width - attention_mask.sum(1)).tolist()
        self.refresh()
        self._state = self.packed_layers.state(self.base) if cache.slots.static or self.compiled else ()
        cache.begin_prefill(padding, width)
        logits, hidden = self._forward(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask if any(padding) else None,
                "position_ids": (attention_mask.cumsum(1) - 1).clamp_min(0),
                "past_key_values": cache,
                **({"logits_to_keep": 1} if _takes(self.base, "logits_to_keep") else {}),
            }
        )
        for tree in (CandidateTree(), self.tree):
            if self.compiled:
                cache.begin_tree(len(tree), logits.device)
                self._compiled(input_ids[:, -1:].expand(-1, len(tree)), tree, cache)
        return logits[:, -1], hidden[:, -1]

    def verify(self, tokens: Tensor, tree: CandidateTree, cache: TreeCache) -> tuple[Tensor, Tensor]:
        """One forward over the nodes' tokens [B, N]; returns logits [B, N, V] and hidden states [B, N, H]."""
        cache.begin_tree(len(tree), tokens.device)
        ready = self._compiled(tokens, tree, cache) if self.compiled else None
        if ready is not None:
            logits, hidden = ready()
            return logits, hidden
        inputs = self._tree_inputs(tokens, tree, cache)
        if not cache.slots.static:
            return self._forward_tree(cache, **inputs)
        cache.make_room()
        state = self._state, cache.addresses
        key = (*tokens.shape, cache.slots.end)
        verified: tuple[Tensor, Tensor] = self.captures.run(state, key, partial(self._forward_tree, cache), inputs)
        return verified

    def _tree_inputs(self, tokens: Tensor, tree: CandidateTree, cache: TreeCache) -> dict[str, Any]:
        """All that a forward over a tree is told, the masks under the names of the layers they are for."""
        columns = {} if cache.slots.columns is None else {"columns": cache.slots.columns}
        masks = self._tree_masks(tree, cache, tokens.device)
        return {"tokens": tokens, "positions": cache.positions(tree, tokens.device), **columns, **masks}

    def _forward_tree(
        self,
        cache: TreeCache,
        tokens: Tensor,
        positions: Tensor,
        columns: Tensor | None = None,
        as_operators: bool = False,
        **masks: Any,
    ) -> tuple[Tensor, Tensor]:
        cache.slots.columns = columns
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        inputs = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        return self._forward(inputs, as_operators)

    def _compiled(
        self, tokens: Tensor, tree: CandidateTree, cache: TreeCache
    ) -> Callable[[], tuple[Tensor, ...]] | None:
        """The forward over a tree as a program; compiled if there is none yet, None where that cannot be done."""
        cache.make_room()
        inputs = {
            name: each.clone(memory_format=torch.contiguous_format)  # strides are sizes that a program counts on, too
            for name, each in self._tree_inputs(tokens, tree, cache).items()
        }
        names, count = list(inputs), len(inputs)

        def forward(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            named = dict(zip(names, tensors[:count], strict=True))
            with cache.lent(named["columns"], tensors[count - 1].shape[-1], tensors[count:]):
                return self._forward_tree(cache, as_operators=True, **named)

        tensors = [*inputs.values(), *cache.states]
        try:
            program = self.programs.get(self._state, forward, tensors[:count], tensors[count:])
        except Exception as error:  # a compiler raises what it likes
            reason = str(error).strip().split("\n")[0]
            warnings.warn(f"this model cannot be compiled here, and goes on as it is: {reason}", stacklevel=2)
            self.compiled, self.programs = False, Programs()
            return None
        return partial(program, tensors)

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """What the lm_head reads [B, P, H] after each token of right-padded texts [B, P]; no cache, no logits."""
        with captured_input(self.lm_head, passed_on=1) as captured:
            self.base(input_ids=input_ids, use_cache=False)
        return captured[-1]

    def _forward(self, inputs: dict[str, Any], as_operators: bool = False) -> tuple[Tensor, Tensor]:
        with self.packed_layers.running(as_operators=as_operators), captured_input(self._layout.lm_head) as captured:
            logits = self.base(**inputs, use_cache=True, return_dict=True).logits
        return logits, captured[-1]

    def _tree_masks(self, tree: CandidateTree, cache: TreeCache, device: torch.device) -> dict[str, Any]:
        """The mask of each kind of attention layer that the model has."""
        windows = self._layout.windows
        return {kind: self._tree_mask(tree, cache, device, window) for kind, window in windows.items()}

    def _tree_mask(
        self, tree: CandidateTree, cache: TreeCache, device: torch.device, window: int | None
    ) -> Tensor | BlockMask:
        if not self._layout.flex:
            return cache.tree_mask(tree, self._layout.dtype, device, window)
        seen = cache.visible(tree, device, window)
        rows, nodes, columns = seen.shape
        return create_block_mask(lambda b, _, q, k: seen[b, q, k], rows, None, nodes, columns, device=device)


def check_base(base: PreTrainedModel) -> None:
    """Raises ValueError, naming the remedy, for a model that cannot verify a tree."""
    config = base.config.get_text_config()
    name = f"{type(base).__name__} ({config.model_type})"
    layers = set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS
    if config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder model; Medusa needs a decoder-only one")
    if layers or getattr(base, "_is_stateful", False):
        raise ValueError(
            f"{name} has layers that keep a running state ({', '.join(sorted(layers)) or 'state-space'}), which cannot "
            "verify several continuations at once; use a model whose layers are all attention"
        )
    if "local" in (getattr(config, "attention_layers", None) or ()):
        raise ValueError(f"{name} has local attention by column, which cannot follow a tree; use another model")
    if getattr(config, "alibi", False) or not all(_takes(base, x) for x in ("position_ids", "past_key_values")):
        raise ValueError(
            f"{name} takes no explicit position ids (ALiBi or an older design), so nodes of a tree cannot be told "
            "where they stand; use a model with rotary or learnt positions"
        )
    if base.get_output_embeddings() is None:
        raise ValueError(f"{name} has no lm_head; load it with AutoModelForCausalLM")
    if config._attn_implementation not in TREE_ATTENTION:
        raise ValueError(
            f"{name} runs {config._attn_implementation}, which takes no tree mask; load it with "
            "attn_implementation='sdpa' or call base.set_attn_implementation('sdpa')"
        )


def _check_switches(prepack: Prepack, capture: bool | None, compiled: bool) -> None:
    """Raises ValueError for a value that a switch does not have, such as another name of a packing."""
    taken: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "prepack": (prepack, (None, True, False, "half")),
        "capture": (capture, (None, True, False)),
        "compiled": (compiled, (True, False)),
    }
    for name, (value, values) in taken.items():
        if value not in values:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}, got {value!r}")


def running_device(base: PreTrainedModel) -> torch.device:
    """Where a base model runs. Offloaded weights are on no device (`meta`); they come to where the others are."""
    places = (parameter.device for parameter in base.parameters())
    return next((place for place in places if place.type != "meta"), torch.device("cpu"))


def capturable(base: PreTrainedModel) -> bool:
    """Whether steps of this model can be captured, which pays on a GPU: it is on one, and no hooks move its weights.

    Experts are chosen by values that only the GPU knows, which transformers asks it for.
    """
    config = base.config.get_text_config()
    devices = {parameter.device for parameter in base.parameters()}
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    moved = any(hasattr(module, "_hf_hook") for module in base.modules())
    on_gpu = len(devices) == 1 and devices.pop().type == "cuda"
    return on_gpu and not moved and not experts and config._attn_implementation != "flex_attention"


def check_heads(base: PreTrainedModel, heads: MedusaConfig) -> None:
    """Raises ValueError where the heads' sizes are not the base model's."""
    vocab_size, hidden_size = _output_shape(base)
    for field, mine, theirs in (
        ("hidden_size", heads.hidden_size, hidden_size),
        ("vocab_size", heads.vocab_size, vocab_size),
    ):
        if mine != theirs:
            raise ValueError(
                f"the heads' {field} is {mine} but {base.config.name_or_path or type(base).__name__} has {theirs}: "
                "they were made for another base model, or its embeddings were resized since"
            )


def _output_shape(base: PreTrainedModel) -> tuple[int, int]:
    """V and H of the lm_head; asked without its weight, which may be packed."""
    lm_head = base.get_output_embeddings()
    if isinstance(lm_head, nn.Linear):
        return lm_head.out_features, lm_head.in_features
    vocab_size, hidden_size = lm_head.weight.shape
    return vocab_size, hidden_size


def new_heads(base: PreTrainedModel, num_heads: int, num_layers: int, own_lm_head: bool, bias: bool) -> MedusaHeads:
    """Untrained heads for a base model; each predicts what the base itself predicts (section 2.1.1)."""
    check_base(base)
    lm_head = base.get_output_embeddings()
    vocab_size, hidden_size = lm_head.weight.shape
    config = MedusaConfig(num_heads, num_layers, hidden_size, vocab_size, own_lm_head, bias)
    return MedusaHeads.from_lm_head(lm_head, config, LogitRule.of(base.config.get_text_config()))


@contextmanager
def captured_input(module: nn.Module, passed_on: int | None = None) -> Iterator[list[Tensor]]:
    """The first argument [B, P, ...] of every call of `module` while the context lasts.

    Args:
        passed_on: how many of the P the module itself still gets; None is all of them.
    """
    captured: list[Tensor] = []

    def capture(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        captured.append(args[0])
        return args if passed_on is None else (args[0][:, :passed_on], *args[1:])

    handle = module.register_forward_pre_hook(capture)
    try:
        yield captured
    finally:
        handle.remove()


def _takes(base: PreTrainedModel, argument: str) -> bool:
    return argument in inspect.signature(base.forward).parameters
