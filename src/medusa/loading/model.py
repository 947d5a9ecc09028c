"""`MedusaModel`, what users hold: loads and saves as transformers models do, and generates as they
do.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from .. import generation
from ..core.engine import PLAIN
from ..core.heads import MedusaHeads
from ..core.model import Prepack, TreeModel, check_heads, new_heads
from ..core.schedule import UNCALIBRATED
from ..core.tree import CandidateTree
from ..formats import adapters, bases, names, native
from ..formats.bases import Origin
from .checks import loaded_base, tree_attention, usable_calibration
from .named import NamedModel


@dataclass(frozen=True)
class Merged:
    """An adapter that was merged into a base model.

    Attributes:
        folder: where the adapter lies.
        digest: of its weights.
        fingerprint: of the base with the adapter.
    """

    folder: Path
    digest: str
    fingerprint: dict[str, tuple[torch.dtype, int]]


class MedusaModel(TreeModel):
    """A causal language model with Medusa heads: the same text as the model alone, in fewer steps.

    `model.base` is the transformers model, `model.heads` the heads, `model.tree` the candidates
    verified each step.
    """

    def __init__(self, base: PreTrainedModel, heads: MedusaHeads, *args: Any, **kwargs: Any):
        super().__init__(base, heads, *args, **kwargs)
        self.origin = Origin.of(base)
        """Where the base was loaded from; saved heads name it."""
        self.merged: Merged | None = None
        """The adapter that was merged into the base; saved beside the heads."""

    @classmethod
    def from_base(
        cls,
        model_or_id: PreTrainedModel | str | Path,
        num_heads: int = 5,
        *,
        num_layers: int = 1,
        own_lm_head: bool = True,
        bias: bool = True,
        tree: CandidateTree | None = None,
        prepack: Prepack = None,
        compiled: bool = False,
        **kwargs: Any,
    ) -> MedusaModel:
        """New, untrained heads on any causal language model.

        Args:
            model_or_id: a loaded model, which is left as it is, or a folder or hub id of a model,
                or of a PEFT adapter, which is then loaded on its base model.
            num_heads: K. A head further ahead is less often right; five are the paper's choice.
            num_layers: residual layers a head.
            own_lm_head: False shares the base's lm_head between all heads: K V H fewer weights.
            bias: whether residual layers have a bias.
            tree: the candidates of a step; by default the tree for uncalibrated heads.
            prepack: packed CPU weights, by default where they help; "half" packs in 16 bits what
                float16 holds.
            compiled: compile the base model's step at the first prefill (CPU, needs a C++
                compiler).
            kwargs: passed to transformers (dtype, device_map, quantization_config, revision, token,
                ...).

        Raises:
            ValueError: the model cannot verify a tree, or has heads already.
            TypeError: an argument is for loading, and the model is loaded.
        """
        if isinstance(model_or_id, (str, Path)):
            named = NamedModel.find(model_or_id, **tree_attention(kwargs))
            if named.heads is not None:
                raise ValueError(
                    f"{model_or_id} holds Medusa heads: load them with MedusaModel.from_pretrained"
                )
            base = named.load_base()
            origin = Origin.of(base, named.base.name, **named.options)
        else:
            base = loaded_base(model_or_id, kwargs)
            origin = Origin.of(base)
        heads = new_heads(base, num_heads, num_layers, own_lm_head, bias)
        model = cls(
            base, heads, tree, prepack, owns_base=base is not model_or_id, compiled=compiled
        )
        model.origin = origin
        return model

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        base: PreTrainedModel | str | Path | None = None,
        base_revision: str | None = None,
        tree: CandidateTree | None = None,
        prepack: Prepack = None,
        compiled: bool = False,
        all_heads: bool = False,
        **kwargs: Any,
    ) -> MedusaModel:
        """Heads from a native folder or a hub repository, and the base model they name.

        Args:
            path_or_id: folder or hub id of the heads.
            base: the base model, loaded or by name, where it is not the one the heads name. A
                loaded one is taken as it is: where the heads' backbone has an adapter, it is to
                    have it already.
            base_revision: the base model's revision, by default the one that the heads name;
                `revision` is the heads'.
            tree: replaces the folder's tree.
            prepack: packed CPU weights, by default where they help; "half" packs in 16 bits what
                float16 holds.
            compiled: compile the base model's step at the first prefill (CPU, needs a C++
                compiler).
            all_heads: load heads, too, that the tree does not use; to train, calibrate or save
                them, say.
            kwargs: token, cache_dir and the like go to both downloads, the rest to transformers for
                the base model (dtype, device_map, quantization_config, attn_implementation, ...).

        Raises:
            ValueError: the folder is not a native one or does not fit the base; says exactly what.
            TypeError: an argument is for loading the base model, and it is loaded.
        """
        if isinstance(base, (str, Path, NoneType)):
            named = NamedModel.find(path_or_id, base, base_revision, **tree_attention(kwargs))
            folder = _heads_folder(named.heads, path_or_id)
            backbone = named.load_backbone()
            origin = Origin.of(backbone, named.base.name, **named.options)
        else:
            hub = names.chosen(kwargs, *names.HUB_ARGUMENTS)
            folder = _heads_folder(names.find_heads(path_or_id, **hub), path_or_id)
            for_base = {name: value for name, value in kwargs.items() if name not in hub}
            if base_revision is not None:
                for_base["base_revision"] = base_revision
            backbone = loaded_base(base, for_base)
            origin = Origin.of(backbone)
        model = cls._with_heads(
            backbone,
            folder,
            str(path_or_id),
            tree=tree,
            prepack=prepack,
            compiled=compiled,
            all_heads=all_heads,
            owns_base=backbone is not base,
        )
        model.origin = origin
        return model

    @classmethod
    def _with_heads(
        cls,
        backbone: PreTrainedModel,
        folder: Path,
        name: str,
        *,
        tree: CandidateTree | None = None,
        all_heads: bool = False,
        **options: Any,
    ) -> MedusaModel:
        """Return a model of a backbone, which has its adapter, and the heads in a folder.

        Args:
            name: name of the heads, for warnings.
            options: of the constructor.
        """
        stored, calibration = native.read_tree(folder) or (None, UNCALIBRATED)
        calibration = usable_calibration(calibration, backbone, name)
        if tree is None and stored is not None and not stored.max_depth:
            warnings.warn(
                f"calibration of {name} found no tree that pays: decoding plainly. Another "
                "tree: tree=...",
                stacklevel=3,
            )
        tree = tree if tree is not None else stored
        used = None if tree is None or all_heads else max(1, tree.max_depth)
        heads = native.read_heads(folder, backbone, used)
        model = cls(backbone, heads, tree, calibration=calibration, **options)
        adapter = native.adapter(folder)
        if adapter is not None and adapters.attached(backbone) is None:
            model.merged = Merged(adapter, adapters.digest(adapter), bases.fingerprint(backbone))
        return model

    def save_pretrained(self, folder: str | Path, *, base: str | None = None) -> None:
        """Write the heads, the tree and the base model's adapter, where it has one, as a native
        folder.

        The base model is named, not copied. It is first compared with the files that it was loaded
        from. A save that fails leaves `folder` as it was.

        Args:
            folder: made if need be.
            base: what to name as the base model, without a comparison: a hub id, or a folder's path
                seen from `folder`. By default what the base was loaded from.

        Raises:
            ValueError: the heads do not fit the base model, whose embeddings were resized since, or
                the base is not what it was loaded from any more, so that its name would stand for
                another model.
            FileNotFoundError: the folder that the base was loaded from is gone.
        """
        check_heads(self.base, self.heads.config)
        folder = Path(folder).expanduser()
        adapter = adapters.attached(self.base)
        if base is None:
            self._check_base(adapter is None)
        with native.saving(folder, self.heads) as new:
            name = str(base) if base is not None else self.origin.seen_from(folder)
            revision = self.origin.revision if base is None else None
            if adapter is not None:
                adapters.write(self.base, adapter, new / names.ADAPTER)
            elif self.merged is not None:
                self._copy_adapter(new / names.ADAPTER)
            native.write_heads(new, self.heads, self.tree, name, self.calibration, revision)

    def _check_base(self, plain: bool) -> None:
        """Raises ValueError where the base, its adapter left out, is not what it was when it was
        loaded.
        """
        if plain and self.merged is not None:
            bases.check_same(self.base, self.merged.fingerprint)
        else:
            bases.check_unchanged(self.base, self.origin)

    def _copy_adapter(self, place: Path) -> None:
        merged = self.merged
        assert merged is not None
        if not merged.folder.is_dir() or adapters.digest(merged.folder) != merged.digest:
            raise ValueError(
                f"{merged.folder} does not hold the base model's adapter any more: put it back"
            )
        shutil.copytree(merged.folder, place)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        **kwargs: Any,
    ) -> str:
        """Upload the native folder to a hub repository, made if need be; returns the commit's
        address.

        Args:
            base: the hub id to name as the base model; by default what the base was loaded from.

        Raises:
            ValueError: the base was loaded from a folder, which others do not have, or was not
                loaded at all; it was changed since; or the repository holds a model.
        """
        if base is None and not self.origin.is_hub_id:
            name = self.origin.name
            where = f"lies in {name}, which others do not have" if name else "has no name"
            raise ValueError(f"the base model {where}: name its hub id, base='owner/name'")
        api, at = HfApi(token=token), {"revision": kwargs.get("revision")}
        there = [
            name for name in (names.CONFIG, names.WEIGHTS) if api.file_exists(repo_id, name, **at)
        ]
        if there == [names.CONFIG]:
            raise ValueError(
                f"{repo_id} holds a model, whose {names.CONFIG} heads would replace: name another "
                "one"
            )
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, base=base)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **kwargs))

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Tensor | generation.MedusaGenerateOutput:
        """Generate as `transformers`' `generate` does, several tokens a step.

        Greedy text is the base model's own, token for token; sampled text follows its distribution
        exactly unless `acceptance="typical"` is asked for. Without `do_sample`, typical acceptance
        is greedy decoding, too.

        Args:
            inputs: token ids [B, P], padded on the left (also as `input_ids`, with
                `attention_mask`). Masked tokens are left out of a prompt. Without inputs a text
                begins with `bos_token_id`.
            generation_config: as in transformers, and so are its fields as keyword arguments.
                Lengths count a row's own tokens, without padding.
            acceptance: "auto" (greedy without sampling, rejection with it), "greedy", "rejection",
                "typical", or a policy.
            tree: the candidates of a step, in place of `model.tree`.
            generator: source of randomness, or one a sequence; without it torch's global one seeds
                the rows.
            within_positions: end a row where the model's positions end (`max_position_embeddings`,
                or where its rotary frequencies change), however many new tokens are asked for.
            logits_processor, stopping_criteria, stop_strings (with tokenizer), streamer: as in
            transformers.

        Returns:
            Sequences [B, P + T], or with `return_dict_in_generate=True` a `MedusaGenerateOutput`
            with statistics.

        Raises:
            ValueError: an option or input is not supported, or a text would outgrow the model's
                positions; names the alternative.
            RuntimeError: there is no distribution to sample from, because logits hold NaN or
                infinity, or a processor excluded every token.
        """
        return generation.generate(self, inputs, generation_config, **kwargs)

    def steps(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> generation.Session:
        """Make a request ready, with the arguments of `generate`; iterate the session to decode it
        step by step.

        Each iteration gives a step's new tokens of every row, [B][n].
        """
        return generation.prepare(self, inputs, generation_config, **kwargs)


def load(
    named: NamedModel,
    *,
    device: str | None = None,
    prepack: Prepack = None,
    compiled: bool = False,
    all_heads: bool = False,
) -> tuple[MedusaModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, which is read first, before the weights.

    A base model without heads decodes plainly.

    Args:
        device: device for the backbone and the heads; None leaves them where transformers puts
            them.
        prepack, compiled, all_heads: as in `MedusaModel.from_pretrained`.

    Raises:
        OSError: a file is missing, or the hub cannot be reached.
        ImportError: there is an adapter, and peft is not installed.
        ValueError: a file is broken, or the heads do not fit the base model.
    """
    tokenizer = named.tokenizer()
    backbone = named.load_backbone()
    if device is not None:
        backbone = backbone.to(device)
    options: dict[str, Any] = {"prepack": prepack, "compiled": compiled, "owns_base": True}
    if named.heads is None:
        heads = new_heads(backbone, 1, 1, own_lm_head=False, bias=True)
        model = MedusaModel(backbone, heads, PLAIN, **options)
    else:
        model = MedusaModel._with_heads(
            backbone, named.heads, named.name, all_heads=all_heads, **options
        )
    model.origin = Origin.of(backbone, named.base.name, **named.options)
    return model, tokenizer


def _heads_folder(folder: Path | None, name: str | Path) -> Path:
    """Return the folder of heads that was found.

    Raises:
        ValueError: none was.
    """
    if folder is None:
        raise ValueError(
            f"{name} holds no Medusa heads: MedusaModel.from_base adds new ones to a model"
        )
    return folder
