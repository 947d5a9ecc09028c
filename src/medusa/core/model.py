"""`TreeModel`: a base model and its heads, run together. It does not decode, and reads no files.

Nothing is patched or hooked on the base model: it runs as a twin (`runtime.twin`), in which packed
layers stand for linear ones and the lm_head records its input.
Shapes: B rows, P prompt columns, N tree nodes, H hidden size, V vocabulary, C cache columns.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..runtime.capture import Captures
from ..runtime.packing import PackedStack, Packing, unpack, worth_packing
from ..runtime.products import PackedWeight, packable
from ..runtime.state import execution_state, weights_state
from ..runtime.twin import Runner, twin
from .cache import TreeCache
from .checks import (
    Prepack,
    cache_argument,
    capturable,
    check_base,
    check_heads,
    check_switches,
    running_device,
    takes,
)
from .drafting import DraftProjection
from .heads import LogitRule, MedusaHeads, Projection
from .history import History
from .layers import LayerPrograms, compiled_layers
from .masks import Layout, TreeBatch
from .positions import Positions
from .schedule import UNCALIBRATED, Calibration
from .tree import CandidateTree

RUNNING = (
    "captures programs lock _state _idle_cache _layout _cache_argument _packing _packed_heads "
    "_products _draft _draft_product _runner"
).split()
"""Attributes of the running model; copies and pickles are made without them."""


class TreeModel(nn.Module):
    """A causal language model and the Medusa heads that speed it up.

    Args:
        base: any decoder-only transformers model with an ordinary key-value cache.
        heads: heads made for it.
        tree: the candidates to verify each step; by default the one for uncalibrated heads.
        prepack: run the linear layers on packed copies of their weights (CPU only). None does so
            where it helps; False never does. "half" packs what float16 holds of a float32 model in
            16 bits; sums stay in float32. "int4" also packs in 4 bits what was stored in 4 bits
            before, such as the weights of a Q4_1 file; states are then rounded to bfloat16 where
            they are multiplied, so that near-ties may be decided otherwise than by plain decoding.
        owns_base: nobody else holds the base model, so that dense weights which are packed too may
            be freed; they are restored when they are read. Otherwise packing takes the memory of
            the weights a second time.
        calibration: measurements of the heads on this machine; decoding uses them to estimate
            whether the tree pays.
        capture: verify with shapes that stay the same for long, on a GPU as a captured graph. None
            does so on GPUs.
        compiled: verify by programs that are compiled at the first prefill (CPU only), one for
            plain decoding and one for trees; again for batches. It saves the Python code between
            operators. It takes a C++ compiler, and some seconds where no process of this machine
            has compiled such layers before. Where it fails, a warning says so, and the model runs
            uncompiled.

    Attributes:
        lock: held by the thread that runs the model.

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
        check_switches(prepack, capture, compiled)
        self.base = base
        self.positions = Positions.of(base)
        self.heads = heads
        self.tree = tree if tree is not None else CandidateTree.default(heads.config.num_heads)
        self.tree.check_heads(heads.config.num_heads, heads.config.choices)
        self.prepack = prepack
        self.owns_base = owns_base
        self.calibration = calibration
        self.history = History()
        self.capture = capture
        self.compiled = compiled
        self._begin()

    def _begin(self) -> None:
        """Create the attributes of the running model."""
        self.captures, self.programs = Captures(), LayerPrograms()
        # identifies the base model that was captured
        self._state: tuple[Any, ...] = ()
        self._idle_cache: TreeCache | None = None
        self._layout = Layout.of(self.base)
        self._cache_argument = str(cache_argument(self.base))
        self._packing, self._packed_heads = Packing(), PackedStack()
        self._products: list[PackedWeight] = []  # with the heads' own projections
        self._draft = DraftProjection()
        self._draft_product: Projection | None = None  # with the lm_head's rows that heads need
        self._runner: Runner | None = None
        self.lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in RUNNING}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def refresh(self) -> None:
        """Read the base model as it is now; pack weights that are new or have changed.

        The engine calls this before it prefills a request.

        Raises:
            ValueError: the heads no longer fit the base model, or a switch has no such value, or
                the model is to be compiled, and is not on the CPU or runs flex attention.
        """
        check_switches(self.prepack, self.capture, self.compiled)
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
        with self.lock:
            replaced = self._packed_layers()
            if self.compiled:
                replaced |= compiled_layers(self.base, replaced, self.programs)
            self._runner = Runner(self.base, self.lm_head, replaced)
            if self.captures_steps:
                self._state = execution_state(self._runner.model)
            stack = getattr(self.heads, "w2", None)
            packs = self.packs and isinstance(stack, Tensor) and packable(stack)
            self._products = (
                self._packed_heads.refresh(stack) if packs and stack is not None else []
            )
            self._draft_product = self._draft.refresh(self.heads, self.lm_head, self.packs)

    def _packed_layers(self) -> dict[nn.Module, nn.Module]:
        """Return the layers that run packed, and the packed ones; none where packing is off."""
        narrow = self.prepack if isinstance(self.prepack, str) else None
        if self._packing.narrow != narrow or not self.packs:
            unpack(self.base)
            self._packing, self._packed_heads = Packing(narrow), PackedStack(narrow)
            self._draft = DraftProjection(narrow)
        return self._packing.refresh(self.base, self.owns_base) if self.packs else {}

    @property
    def packs(self) -> bool:
        """True if linear layers run packed."""
        return worth_packing(self.base) if self.prepack is None else self.prepack is not False

    @property
    def packed_base(self) -> PreTrainedModel:
        """The base model with packed layers, up to date with its weights, for transformers."""
        return cast(PreTrainedModel, twin(self.base, self._packed_layers()))

    @property
    def compilable(self) -> bool:
        """True if the model runs where its layers can be compiled: on a CPU, without flex."""
        return self.device.type == "cpu" and not Layout.of(self.base).flex

    @property
    def captures_steps(self) -> bool:
        """True if steps run with shapes that can be captured."""
        return capturable(self.base) if self.capture is None else self.capture

    @property
    def windows(self) -> Mapping[str, int | None]:
        """Number of positions that each kind of attention layer sees; None is all of them."""
        return self._layout.windows

    @property
    def weights_state(self) -> tuple[Any, ...]:
        """A value that changes with the base model's weights, as `refresh` has read them."""
        return weights_state(self.runner.model)

    @property
    def lm_head(self) -> nn.Module:
        """The base model's output projection."""
        return self.base.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        """Device of the token ids."""
        return running_device(self.base)

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def runner(self) -> Runner:
        """The twin of the base model, which runs here."""
        if self._runner is None:
            self.refresh()
        assert self._runner is not None
        return self._runner

    def new_cache(self, expected: int = 0, static: bool = False) -> TreeCache:
        """Return an empty cache.

        Args:
            expected: columns that will be needed (prompt, new tokens and nodes), as far as known.
            static: keep its shapes the same for long, so that steps can be captured.
        """
        layers = self.base.config.get_text_config().num_hidden_layers
        return TreeCache(layers, expected, static=static, named=self.compiled)

    def take_cache(self) -> TreeCache:
        """Return an empty cache for steps; where steps are captured, the one given back last."""
        with self.lock:
            idle, self._idle_cache = self._idle_cache, None
            if idle is not None and self.captures_steps and idle.fits(self.dtype, self.device):
                return idle
            return self.new_cache(static=self.captures_steps)

    def give_back(self, cache: TreeCache) -> None:
        """Keep a cache that is no longer used; steps captured with it stay valid."""
        cache.clear()
        self._idle_cache = cache if cache.slots.static else None

    def draft_logits(self, hidden: Tensor, first: int | None = None) -> Tensor:
        """Return the logits [B, K, V] of all heads, or of the `first`, for hidden states [B, H].

        They are minus infinity for tokens that the heads may not propose.
        """
        own = next(self.heads.parameters(), hidden)
        with self.lock:
            products = {"products": self._products} if self._products else {}
            project = self._draft_product or self.runner.project
            logits: Tensor = self.heads(
                hidden.to(own.device, own.dtype), project, first, **products
            )
        return self.heads.proposed(logits).transpose(0, 1)

    def base_logits(self, hidden: Tensor) -> Tensor:
        """Return the base model's own logits [..., V] for hidden states [..., H]."""
        with self.lock:
            logits = self.runner.project(hidden)
        return LogitRule.of(self.base.config.get_text_config())(logits)

    def hidden_states(self, input_ids: Tensor) -> Tensor:
        """Return what the lm_head reads [B, P, H] after each token of right-padded texts [B, P].

        No cache is written and no logits are computed.
        """
        with self.lock:
            _, hidden = self.runner(passed_on=1, input_ids=input_ids, use_cache=False)
        return hidden

    def prefill(
        self, input_ids: Tensor, attention_mask: Tensor, cache: TreeCache
    ) -> tuple[Tensor, Tensor]:
        """Run prompts, or the next chunk of prompts, and write their states into the cache.

        Args:
            input_ids: [B, P] the columns of this forward, left-padded.
            attention_mask: [B, C] 0 for padding, 1 for tokens, of all columns up to the last.
            cache: holds the columns before; empty for the first chunk.

        Returns:
            The last column's logits [B, V] and hidden states [B, H].
        """
        width, end = input_ids.shape[1], attention_mask.shape[1]
        padding = (end - attention_mask.sum(1)).tolist()
        positions = (attention_mask.cumsum(1) - 1).clamp_min(0)[:, -width:]
        cache.begin_prefill(padding, end - width, end)
        logits, hidden = self._forward(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask if any(padding) else None,
                "position_ids": positions,
                self._cache_argument: cache,
                **({"logits_to_keep": 1} if takes(self.base, "logits_to_keep") else {}),
            }
        )
        return logits[:, -1], hidden[:, -1]

    def verify(
        self, tokens: Tensor, trees: CandidateTree | Sequence[CandidateTree], cache: TreeCache
    ) -> tuple[Tensor, Tensor]:
        """Run the nodes of a tree for each row, in one forward.

        Args:
            tokens: [B, N] of the nodes; rows with a smaller tree are padded with any token.
            trees: one tree for each row, or one for all.
            cache: the rows' context; the nodes' states are written behind it.

        Returns:
            Logits [B, N, V] and hidden states [B, N, H] after each node.
        """
        rows = len(tokens)
        cache.begin_tree(tokens.shape[1], tokens.device)
        if idle := len(cache.lengths) - rows:
            tokens = nn.functional.pad(tokens, (0, 0, 0, idle))
            if not isinstance(trees, CandidateTree):
                trees = [*trees, *[trees[0]] * idle]
        logits, hidden = self._verified(tokens, TreeBatch.of(trees), cache)
        return logits[:rows], hidden[:rows]

    def _verified(self, tokens: Tensor, trees: TreeBatch, cache: TreeCache) -> tuple[Tensor, ...]:
        inputs = self._tree_inputs(tokens, trees, cache)
        cache.make_room()
        if not cache.slots.static:
            return self._forward_tree(cache, **inputs)
        state = self._state, cache.addresses
        key = (*tokens.shape, cache.slots.end)
        outputs: tuple[Tensor, Tensor] = self.captures.run(
            state, key, partial(self._forward_tree, cache), inputs
        )
        return outputs

    def compile_steps(self, cache: TreeCache) -> None:
        """Compile the programs of steps now, where `compiled` asks for it and there are none yet.

        This runs a step of each kind, which writes behind the columns that are kept.
        """
        several = len(cache.lengths) > 1
        if not self.compiled or several in self.programs.prepared:
            return
        for tree in (CandidateTree(), self.tree):
            tokens = torch.zeros(len(cache.length), len(tree), dtype=torch.long)
            self.verify(tokens, tree, cache)
        self.programs.prepared.add(several)

    def _tree_inputs(self, tokens: Tensor, trees: TreeBatch, cache: TreeCache) -> dict[str, Any]:
        """Return the arguments of a forward over trees; each mask is named by its layers' kind."""
        columns = {} if cache.slots.columns is None else {"columns": cache.slots.columns}
        masks = self._layout.masks(cache.lengths, trees, cache.slots.end, tokens.device)
        positions = cache.positions(trees, tokens.device)
        return {"tokens": tokens, "positions": positions, **columns, **masks}

    def _forward_tree(
        self,
        cache: TreeCache,
        tokens: Tensor,
        positions: Tensor,
        columns: Tensor | None = None,
        **masks: Any,
    ) -> tuple[Tensor, Tensor]:
        cache.slots.columns = columns
        mask = masks if len(masks) > 1 else next(iter(masks.values()))
        inputs = {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": positions,
            self._cache_argument: cache,
        }
        return self._forward(inputs)

    def _forward(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        with self.lock:
            return self.runner(**inputs, use_cache=True)
