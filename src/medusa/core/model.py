"""`TreeModel`: a base model and its heads, run together. It does not decode, and knows nothing of
files.

Nothing is patched or hooked on the base model: it runs as a twin (`runtime.twin`), in which packed
    layers stand for
linear ones and the lm_head notes what it reads.
Shapes: B rows, P prompt columns, N tree nodes, H hidden size, V vocabulary, C cache columns.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from ..runtime.capture import Captures
from ..runtime.compiled import Programs
from ..runtime.packing import PackedStack, Packing, stored_parameters, unpack, worth_packing
from ..runtime.products import PackedWeight, as_operators, packable
from ..runtime.state import execution_state
from ..runtime.twin import Runner, twin
from .cache import TreeCache
from .heads import LogitRule, MedusaConfig, MedusaHeads
from .positions import Positions
from .schedule import UNCALIBRATED, Calibration, StepTimes
from .tree import CandidateTree

Prepack = Literal["half"] | bool | None
TREE_ATTENTION = ("eager", "sdpa", "flex_attention")
"""Attention implementations that take a mask of any shape, as a tree needs."""
ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Layout:
    """What a step needs to know of the base model. Configurations are slow to ask, so a request
    asks once.

    Attributes:
        windows: for each kind of attention layer how many positions back it sees; None is all of
            them.
        flex: whether masks are flex attention's.
        dtype: of the hidden states, and of masks.
    """

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
        return cls(windows or {"all": window}, flex, base.dtype)


class TreeModel(nn.Module):
    """A causal language model and the Medusa heads that speed it up.

    Args:
        base: any decoder-only transformers model with an ordinary key-value cache.
        heads: heads made for it.
        tree: the candidates to verify each step; by default the one for uncalibrated heads.
        capture: verify with shapes that stay as they are for long, on a GPU as a captured graph.
            None does so on GPUs.
        compiled: verify by programs that are compiled at the first prefill (CPU only), one for
            plain decoding and one for trees; again for batches. That takes a C++ compiler and some
            seconds to a minute, and frees each step of the Python between operators. Where it
            fails, a warning says so and this is False from then on.
        calibration: what was measured of the heads on this machine; decoding judges by it whether
            the tree pays.
        prepack: run the linear layers on packed copies of their weights (CPU only). None does so
            where it helps; False never does. "half" packs what float16 holds of a float32 model in
            16 bits; sums stay in float32.
        owns_base: nobody else holds the base model, so that dense weights which are packed too may
            be freed; they come back when asked for. Otherwise packing takes the weights' memory a
            second time.

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
        self.compiled = compiled
        self._begin()

    def _begin(self) -> None:
        """Make the state that running needs; copies and pickles of the model begin without it."""
        self.captures, self.programs = Captures(), Programs()
        self._state: tuple[
            Any, ...
        ] = ()  # of the base model: what is captured or compiled was so for this one
        self._idle_cache: TreeCache | None = None
        self._layout = Layout.of(self.base)
        self._packing, self._packed_heads = Packing(), PackedStack()
        self._products: list[PackedWeight] = []  # with the heads' own projections
        self._runner: Runner | None = None
        self._lock = threading.RLock()  # threads take turns, a step each

    def __getstate__(self) -> dict[str, Any]:
        running = (
            "captures programs _state _idle_cache _layout _packing _packed_heads _products _runner "
            "_lock"
        ).split()
        return {name: value for name, value in self.__dict__.items() if name not in running}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def refresh(self) -> None:
        """Take the base model as it is now, and pack weights that were not packed yet or have
        changed since.

        Every prefill does this.

        Raises:
            ValueError: the heads no longer fit the base model, or a switch has no such value, or
                the model is to be compiled, and is not on the CPU or runs flex attention.
        """
        _check_switches(self.prepack, self.capture, self.compiled)
        check_heads(self.base, self.heads.config)
        if self.compiled and self.device.type != "cpu":
            raise ValueError(
                "compiled=True is for models on the CPU; on a GPU steps are captured without it"
            )
        self._layout = Layout.of(self.base)
        if self.compiled and self._layout.flex:
            raise ValueError(
                "compiled=True is for eager and sdpa attention: "
                "base.set_attn_implementation('sdpa')"
            )
        with self._lock:
            self._runner = Runner(self.base, self.lm_head, self._packed_layers())
            stack = getattr(self.heads, "w2", None)
            packs = self.packs and isinstance(stack, Tensor) and packable(stack)
            self._products = (
                self._packed_heads.refresh(stack) if packs and stack is not None else []
            )

    def _packed_layers(self) -> dict[nn.Module, nn.Module]:
        """The layers that run packed in place of the base model's own; none where packing is
        off.
        """
        half = self.prepack == "half"
        if self._packing.half != half or not self.packs:
            unpack(self.base)
            self._packing, self._packed_heads = Packing(half), PackedStack(half)
        return self._packing.refresh(self.base, self.owns_base) if self.packs else {}

    @property
    def packs(self) -> bool:
        """Whether linear layers run packed."""
        return worth_packing(self.base) if self.prepack is None else self.prepack is not False

    @property
    def packed_base(self) -> PreTrainedModel:
        """The base model with packed layers, up to date with its weights, for what transformers
        does with it.
        """
        return cast(PreTrainedModel, twin(self.base, self._packed_layers()))

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
        """The logits [B, K, V] of all heads, or of the `first`, for one hidden state a row [B,
        H].
        """
        own = next(self.heads.parameters(), hidden)
        with self._lock:
            products = {"products": self._products} if self._products else {}
            logits: Tensor = self.heads(
                hidden.to(own.device, own.dtype), self.runner.project, first, **products
            )
        return logits.transpose(0, 1)

    def base_logits(self, hidden: Tensor) -> Tensor:
        """The base model's own logits [..., V] for hidden states [..., H]."""
        with self._lock:
            logits = self.runner.project(hidden)
        return LogitRule.of(self.base.config.get_text_config())(logits)

    @property
    def runner(self) -> Runner:
        """The base model as it runs here."""
        if self._runner is None:
            self.refresh()
        assert self._runner is not None
        return self._runner

    def new_cache(self, expected: int, longest: list[int] | None = None) -> TreeCache:
        """A cache for `expected` columns (prompt, new tokens and nodes) and rows of at most
        `longest[b]` tokens.
        """
        layers = self.base.config.get_text_config().num_hidden_layers
        cache = TreeCache(
            layers, expected, longest, static=self.captures_steps, named=self.compiled
        )
        idle, self._idle_cache = self._idle_cache, None
        if (
            idle is not None
            and cache.slots.static
            and longest
            and idle.fits(len(longest), self.dtype, self.device)
        ):
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

    def prefill(
        self, input_ids: Tensor, attention_mask: Tensor, cache: TreeCache
    ) -> tuple[Tensor, Tensor]:
        """Run left-padded prompts [B, P]; returns the last logits [B, V] and hidden states [B,
        H].
        """
        width = input_ids.shape[1]
        padding = (width - attention_mask.sum(1)).tolist()
        self.refresh()
        self._state = (
            execution_state(self.runner.model) if cache.slots.static or self.compiled else ()
        )
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

    def verify(
        self, tokens: Tensor, tree: CandidateTree, cache: TreeCache
    ) -> tuple[Tensor, Tensor]:
        """One forward over the nodes' tokens [B, N]; returns logits [B, N, V] and hidden states [B,
        N, H].
        """
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
        verified: tuple[Tensor, Tensor] = self.captures.run(
            state, key, partial(self._forward_tree, cache), inputs
        )
        return verified

    def _tree_inputs(self, tokens: Tensor, tree: CandidateTree, cache: TreeCache) -> dict[str, Any]:
        """All that a forward over a tree is told, the masks under the names of the layers they are
        for.
        """
        columns = {} if cache.slots.columns is None else {"columns": cache.slots.columns}
        masks = self._tree_masks(tree, cache, tokens.device)
        return {
            "tokens": tokens,
            "positions": cache.positions(tree, tokens.device),
            **columns,
            **masks,
        }

    def _forward_tree(
        self,
        cache: TreeCache,
        tokens: Tensor,
        positions: Tensor,
        columns: Tensor | None = None,
        traced: bool = False,
        **masks: Any,
    ) -> tuple[Tensor, Tensor]:
        cache.slots.columns = columns
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        inputs = {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
        }
        return self._forward(inputs, traced)

    def _compiled(
        self, tokens: Tensor, tree: CandidateTree, cache: TreeCache
    ) -> Callable[[], tuple[Tensor, ...]] | None:
        """The forward over a tree as a program; compiled if there is none yet, None where that
        cannot be done.
        """
        cache.make_room()
        inputs = {
            name: each.clone(
                memory_format=torch.contiguous_format
            )  # strides are sizes that a program counts on, too
            for name, each in self._tree_inputs(tokens, tree, cache).items()
        }
        names, count = list(inputs), len(inputs)

        def forward(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            named = dict(zip(names, tensors[:count], strict=True))
            with cache.lent(named["columns"], tensors[count - 1].shape[-1], tensors[count:]):
                return self._forward_tree(cache, traced=True, **named)

        tensors = [*inputs.values(), *cache.states]
        try:
            program = self.programs.get(self._state, forward, tensors[:count], tensors[count:])
        except Exception as error:  # a compiler raises what it likes
            reason = str(error).strip().split("\n")[0]
            warnings.warn(
                f"this model cannot be compiled here, and goes on as it is: {reason}", stacklevel=2
            )
            self.compiled, self.programs = False, Programs()
            return None
        return partial(program, tensors)

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """What the lm_head reads [B, P, H] after each token of right-padded texts [B, P]; no cache,
        no logits.
        """
        with self._lock:
            _, hidden = self.runner(passed_on=1, input_ids=input_ids, use_cache=False)
        return hidden

    def _forward(self, inputs: dict[str, Any], traced: bool = False) -> tuple[Tensor, Tensor]:
        with self._lock, as_operators() if traced else nullcontext():
            return self.runner(**inputs, use_cache=True)

    def _tree_masks(
        self, tree: CandidateTree, cache: TreeCache, device: torch.device
    ) -> dict[str, Any]:
        """The mask of each kind of attention layer that the model has."""
        windows = self._layout.windows
        return {
            kind: self._tree_mask(tree, cache, device, window) for kind, window in windows.items()
        }

    def _tree_mask(
        self, tree: CandidateTree, cache: TreeCache, device: torch.device, window: int | None
    ) -> Tensor | BlockMask:
        if not self._layout.flex:
            return cache.tree_mask(tree, self._layout.dtype, device, window)
        seen = cache.visible(tree, device, window)
        rows, nodes, columns = seen.shape
        return create_block_mask(
            lambda b, _, q, k: seen[b, q, k], rows, None, nodes, columns, device=device
        )


def check_base(base: PreTrainedModel) -> None:
    """Raises ValueError, naming the remedy, for a model that cannot verify a tree."""
    config = base.config.get_text_config()
    name = f"{type(base).__name__} ({config.model_type})"
    layers = set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS
    if config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder model; Medusa needs a decoder-only one")
    if layers or getattr(base, "_is_stateful", False):
        raise ValueError(
            f"{name} has layers that keep a running state "
            f"({', '.join(sorted(layers)) or 'state-space'}), which cannot "
            "verify several continuations at once; use a model whose layers are all attention"
        )
    if "local" in (getattr(config, "attention_layers", None) or ()):
        raise ValueError(
            f"{name} has local attention by column, which cannot follow a tree; use another model"
        )
    if getattr(config, "alibi", False) or not all(
        _takes(base, x) for x in ("position_ids", "past_key_values")
    ):
        raise ValueError(
            f"{name} takes no explicit position ids (ALiBi or an older design), so nodes of a tree "
            "cannot be told "
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
    """Raises ValueError for a value that a switch does not have, such as another name of a
    packing.
    """
    taken: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "prepack": (prepack, (None, True, False, "half")),
        "capture": (capture, (None, True, False)),
        "compiled": (compiled, (True, False)),
    }
    for name, (value, values) in taken.items():
        if value not in values:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}, got {value!r}")


def running_device(base: PreTrainedModel) -> torch.device:
    """Where a base model runs. Offloaded weights are on no device (`meta`); they come to where the
    others are.
    """
    places = (
        each.device for module in base.modules() for each in stored_parameters(module).values()
    )
    return next((place for place in places if place.type != "meta"), torch.device("cpu"))


def capturable(base: PreTrainedModel) -> bool:
    """Whether steps of this model can be captured, which pays on a GPU: it is on one, and no hooks
    move its weights.

    Experts are chosen by values that only the GPU knows, which transformers asks it for.
    """
    config = base.config.get_text_config()
    devices = {
        each.device for module in base.modules() for each in stored_parameters(module).values()
    }
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
                f"the heads' {field} is {mine} but "
                f"{base.config.name_or_path or type(base).__name__} has {theirs}: "
                "they were made for another base model, or its embeddings were resized since"
            )


def _output_shape(base: PreTrainedModel) -> tuple[int, int]:
    """V and H of the lm_head; asked without its weight, which may be packed."""
    lm_head = base.get_output_embeddings()
    if isinstance(lm_head, nn.Linear):
        return lm_head.out_features, lm_head.in_features
    vocab_size, hidden_size = lm_head.weight.shape
    return vocab_size, hidden_size


def new_heads(
    base: PreTrainedModel, num_heads: int, num_layers: int, own_lm_head: bool, bias: bool
) -> MedusaHeads:
    """Untrained heads for a base model; each predicts what the base itself predicts (section
    2.1.1).
    """
    check_base(base)
    lm_head = base.get_output_embeddings()
    vocab_size, hidden_size = lm_head.weight.shape
    config = MedusaConfig(num_heads, num_layers, hidden_size, vocab_size, own_lm_head, bias)
    return MedusaHeads.from_lm_head(lm_head, config, LogitRule.of(base.config.get_text_config()))


def _takes(base: PreTrainedModel, argument: str) -> bool:
    return argument in inspect.signature(base.forward).parameters
