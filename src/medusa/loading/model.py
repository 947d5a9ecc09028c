"""`MedusaModel`: loads, saves and generates as transformers' models do."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from types import NoneType
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.checks import Prepack, check_heads, new_heads
from ..core.engine import PLAIN
from ..core.heads import MedusaHeads
from ..core.schedule import UNCALIBRATED
from ..core.tree import CandidateTree
from ..formats import adapters, bases, names, native
from ..formats.bases import Origin
from ..formats.stored import read_heads
from ..generation.model import GeneratingModel
from .checks import (
    found_faster_compiled,
    heads_folder,
    in_fast_dtype,
    loaded_base,
    tree_attention,
    usable_calibration,
)
from .merged import MergedAdapter
from .named import NamedModel
from .publishing import Repository, check_named


class MedusaModel(GeneratingModel):
    """A causal language model with Medusa heads, which gives the model's own text in fewer steps.

    `model.base` is the transformers model, `model.heads` are the heads, and `model.tree` is the
    candidate tree that each step verifies.
    """

    def __init__(self, base: PreTrainedModel, heads: MedusaHeads, *args: Any, **kwargs: Any):
        super().__init__(base, heads, *args, **kwargs)
        self.origin = Origin.of(base)
        """The place that the base was loaded from. Saved heads name it."""
        self.merged: MergedAdapter | None = None
        """The adapter that was merged into the base. It is saved beside the heads."""
        self.folder: Path | None = None
        """The folder that the heads were loaded from, whose card is published with them."""

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
        """Return a model with new, untrained heads.

        Args:
            model_or_id: a causal language model, which is not changed, or the folder or hub id of
                one, or of a PEFT adapter, which is loaded on its base model.
            num_heads: K. The paper uses five; the further ahead a head predicts, the less often it
                is right.
            num_layers: number of residual layers in each head.
            own_lm_head: give each head an lm_head of its own. False shares the base model's between
                all heads, which saves K V H weights.
            bias: give residual layers a bias.
            tree: the candidate tree; by default the tree for uncalibrated heads.
            prepack: run linear layers on packed weights (CPU). None packs where that is faster;
                "half" packs in 16 bits the weights whose values float16 holds; "int4" also packs
                in 4 bits those that were stored so.
            compiled: compile the base model's layers at the first prefill (CPU; needs a C++
                compiler).
            kwargs: passed to transformers to load the model: dtype, device_map,
                quantization_config, revision, token, ... On a CPU, dtype="auto" is the
                checkpoint's own where that multiplies as fast as float32, else float32.

        Raises:
            ValueError: the model cannot verify a tree, or has heads already.
            TypeError: the model is already loaded, and there are kwargs.
        """
        if isinstance(model_or_id, (str, Path)):
            named = NamedModel.find(model_or_id, **tree_attention(kwargs))
            if named.heads is not None:
                raise ValueError(
                    f"{model_or_id} holds Medusa heads: load them with MedusaModel.from_pretrained"
                )
            base = in_fast_dtype(named.load_base(), named.options)
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
        compiled: bool | None = None,
        all_heads: bool = False,
        **kwargs: Any,
    ) -> MedusaModel:
        """Load heads, and the base model that they name.

        Args:
            path_or_id: folder or hub id of the heads.
            base: the base model, or its name, in place of the one that the heads name. A model is
                taken as it is; if the heads were trained with an adapter, it must have the adapter
                already.
            base_revision: revision of the base model; by default the one that the heads name.
                `revision` is that of the heads.
            tree: the candidate tree; by default the one stored beside the heads.
            prepack: run linear layers on packed weights (CPU). None packs where that is faster;
                "half" packs in 16 bits the weights whose values float16 holds; "int4" also packs
                in 4 bits those that were stored so.
            compiled: compile the base model's layers at the first prefill (CPU; needs a C++
                compiler). None does so where the heads' calibration found it faster on this
                machine.
            all_heads: load also the heads that the tree does not use, such as to train, calibrate
                or save them.
            kwargs: token, cache_dir and the like, for both downloads; the rest is passed to
                transformers to load the base model: dtype ("auto" as for `from_base`), device_map,
                quantization_config, attn_implementation, ...

        Raises:
            ValueError: there are no heads, or they do not fit the base model; says exactly what.
            TypeError: the base model is already loaded, and there are kwargs for loading it.
        """
        if isinstance(base, (str, Path, NoneType)):
            named = NamedModel.find(path_or_id, base, base_revision, **tree_attention(kwargs))
            folder = heads_folder(named.heads, path_or_id)
            backbone = in_fast_dtype(named.load_backbone(), named.options)
            origin = Origin.of(backbone, named.base.name, **named.options)
        else:
            hub = names.chosen(kwargs, *names.HUB_ARGUMENTS)
            folder = heads_folder(names.find_heads(path_or_id, **hub), path_or_id)
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
        prepack: Prepack = None,
        compiled: bool | None = None,
        all_heads: bool = False,
        owns_base: bool = True,
    ) -> MedusaModel:
        """Return a model of a backbone and the heads in a folder, with their tree.

        Args:
            backbone: has the heads' adapter already, if there is one.
            name: the name of the heads in warnings.
        """
        stored, calibration = native.read_tree(folder) or (None, UNCALIBRATED)
        calibration = usable_calibration(calibration, backbone, name, prepack)
        if tree is None and stored is not None and not stored.max_depth:
            warnings.warn(
                f"calibration of {name} found no tree that pays: decoding plainly. Another "
                "tree: tree=...",
                stacklevel=3,
            )
        tree = tree if tree is not None else stored
        used = None if tree is None or all_heads else max(1, tree.max_depth)
        heads = read_heads(folder, backbone, used)
        if compiled is None:
            compiled = found_faster_compiled(calibration)
        model = cls(
            backbone, heads, tree, prepack, owns_base, calibration=calibration, compiled=compiled
        )
        model.folder = folder
        adapter = native.adapter(folder)
        if adapter is not None and adapters.attached(backbone) is None:
            model.merged = MergedAdapter.of(adapter, backbone)
        return model

    def save_pretrained(self, folder: str | Path, *, base: str | None = None) -> None:
        """Write the heads, the tree and the adapter, if there is one, as a native folder.

        The base model is not written, only named, after its weights were compared with the files
        that it was loaded from. A save that fails leaves `folder` as it was.

        Args:
            folder: created if it does not exist.
            base: name of the base model to write: a hub id, or the path of a folder relative to
                `folder`. The weights are then not compared. By default the place that the base
                model was loaded from.

        Raises:
            ValueError: the heads do not fit the base model, because its embeddings were resized; or
                its weights are not those of the files, so that the name would be of another model.
            FileNotFoundError: the folder that the base model was loaded from no longer exists.
        """
        check_heads(self.base, self.heads.config)
        folder = Path(folder).expanduser()
        adapter = adapters.attached(self.base)
        if base is None:
            self._check_base(adapter is None)
        with native.saving(folder, self.heads.config.num_heads) as new:
            name = str(base) if base is not None else self.origin.seen_from(folder)
            revision = self.origin.revision if base is None else None
            if adapter is not None:
                adapters.write(self.base, adapter, new / names.ADAPTER)
            elif self.merged is not None:
                self.merged.copy(new / names.ADAPTER)
            native.write_heads(new, self.heads, self.tree, name, self.calibration, revision)

    def _check_base(self, without_adapter: bool) -> None:
        """Check that the base model's own weights are those that were loaded.

        Args:
            without_adapter: no adapter is attached now; one may have been merged after loading.

        Raises:
            ValueError: a weight differs.
        """
        if without_adapter and self.merged is not None:
            bases.check_same(self.base, self.merged.fingerprint)
        else:
            bases.check_unchanged(self.base, self.origin)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        commit_message: str = "Upload Medusa heads",
        commit_description: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Upload what `save_pretrained` writes, with a model card, to a hub repository.

        The card says what is known of base model, training, accuracies, tree and speed. A
        `README.md` in the folder that the heads were loaded from is uploaded in its place; one in
        the repository stays.

        Args:
            repo_id: created if it does not exist.
            base: hub id to name as the base model; by default the one that it was loaded from.
            private: make a new repository private.
            token: of the hub; by default the one of `hf auth login`.
            commit_message, commit_description: of the commit.
            revision: branch to upload to, created if it does not exist; by default the main branch.
            create_pr: upload as a pull request to the main branch.

        Returns:
            the commit: a string, which is the commit's URL, with `pr_url` and more.

        Raises:
            ValueError: the base model has no hub id or was changed, or the repository holds a model
                whose configuration the heads' would replace.
            OSError: the hub cannot be reached, or refuses the upload.
        """
        check_named(base, self.origin)
        repository = Repository(HfApi(token=token), repo_id, revision)
        repository.check_free()
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            self.save_pretrained(folder, base=base)
            repository.add_card(folder, self.folder)
            return repository.upload(
                folder,
                private,
                commit_message=commit_message,
                commit_description=commit_description,
                create_pr=create_pr,
            )


def load(
    named: NamedModel,
    *,
    device: str | None = None,
    prepack: Prepack = None,
    compiled: bool | None = None,
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
    backbone = in_fast_dtype(backbone, named.options)
    if named.heads is None:
        heads = new_heads(backbone, 1, 1, own_lm_head=False, bias=True)
        model = MedusaModel(backbone, heads, PLAIN, prepack, True, compiled=bool(compiled))
    else:
        model = MedusaModel._with_heads(
            backbone,
            named.heads,
            named.name,
            all_heads=all_heads,
            prepack=prepack,
            compiled=compiled,
        )
    model.origin = Origin.of(backbone, named.base.name, **named.options)
    return model, tokenizer
