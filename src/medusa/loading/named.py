"""Models by name: a folder or hub id of Medusa heads or of a base model, or a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..formats import adapters, bases, names, native
from ..formats.bases import Origin
from ..formats.gguf import files_of
from ..formats.stored import StoredHeads


@dataclass(frozen=True)
class NamedModel:
    """The heads and the base model that a name stands for; nothing is loaded yet.

    Attributes:
        name: folder, hub id or GGUF file, as the user gave it.
        heads: local folder of the heads; None where `name` is a base model.
        base: the base model: `name` itself, which may hold heads too, or the one that the heads
            name.
        options: keyword arguments for transformers to load the base model: dtype, device_map,
            token, ..., and the base model's revision.
    """

    name: str
    heads: Path | None
    base: Origin
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def find(
        cls,
        name: str | Path,
        base: str | Path | None = None,
        base_revision: str | None = None,
        **options: Any,
    ) -> NamedModel:
        """Find a model's heads, which are downloaded if need be, and its base model.

        Args:
            name: folder or hub id of heads, of a base model, or of a PEFT adapter; or a GGUF file.
            base: the base model to use in place of the one that the heads name.
            base_revision: the base model's revision; by default the one that the heads name.
            options: `revision` (of `name`), token, cache_dir and the like, for both downloads;
                the rest for transformers to load the base model.

        Raises:
            FileNotFoundError: a name is a path, and there is no such folder.
            OSError: a name is neither a folder nor a hub id, or the hub cannot be reached.
            ValueError: the folder holds neither heads nor a model, or weights that cannot be read;
                the heads name no base model; `base` is given and there are no heads.
        """
        heads = names.find_heads(name, **names.chosen(options, *names.HUB_ARGUMENTS))
        if heads is None and base is not None:
            raise ValueError(
                f"a base model (--base) is for Medusa heads, and {name} has none: leave it out"
            )
        if base is not None:
            origin = Origin(names.resolved(base))
        elif heads is None or StoredHeads.of(heads).has_base:
            origin = Origin(names.resolved(name), options.get("revision"))
        else:
            origin = native.named_base(heads)
        revision = base_revision or origin.revision
        own = {key: value for key, value in options.items() if key != "revision"}
        if revision is not None:
            own["revision"] = revision
        return cls(str(name), heads, Origin(origin.name, revision), own)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the base model's tokenizer.

        Raises:
            OSError: the base model is not there, or has no tokenizer.
            ValueError: a file of the tokenizer is broken.
        """
        return bases.load_tokenizer(self.base.name, **self._metadata_options)

    def config(self) -> PreTrainedConfig:
        """Return the base model's configuration, without loading its weights."""
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            files_of(self.base.name), **self._metadata_options
        )
        return config

    def end_ids(self) -> set[int]:
        """Return the token ids that end an answer, by the base model's generation configuration."""
        try:
            config = GenerationConfig.from_pretrained(
                files_of(self.base.name), **names.chosen(self.options, *names.HUB_ARGUMENTS)
            )
        except OSError:  # the model has no file of its own for it
            config = GenerationConfig.from_model_config(self.config())
        ids = config.eos_token_id
        return set() if ids is None else set(ids if isinstance(ids, list) else [ids])

    def load_base(self, **options: Any) -> PreTrainedModel:
        """Return the base model, without the adapter that the heads may have beside them.

        Args:
            options: replace those of `options`.

        Raises:
            FileNotFoundError: the name is a path, and there is no such folder.
            ImportError: the base model is a PEFT adapter, and peft is not installed.
            ValueError: the configuration or a weights file is broken; names it.
        """
        return bases.load(self.base.name, **{**self.options, **options})

    def load_backbone(self) -> PreTrainedModel:
        """Return the model that the heads run on: the base model, with the heads' adapter.

        Raises:
            ImportError: there is an adapter, and peft is not installed.
            ValueError: a file is broken, or the adapter does not fit the base model.
        """
        backbone = self.load_base()
        adapter = None if self.heads is None else native.adapter(self.heads)
        return backbone if adapter is None else adapters.apply(backbone, adapter).eval()

    @property
    def _metadata_options(self) -> dict[str, Any]:
        """Those of `options` that loading a configuration or a tokenizer takes."""
        return names.chosen(self.options, *names.HUB_ARGUMENTS, "trust_remote_code")
