"""Heads in other programs' formats, loaded by their names on the hub."""

import pytest
import torch
from foreign import pickled_heads, raw_heads, safe_heads, whole_model
from models import prompt, tiny

from medusa import MedusaModel


@pytest.mark.parametrize("write", [pickled_heads, safe_heads, whole_model])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_the_authors_formats_load_by_a_hub_name(hub, tmp_path, name, write):
    base, raw = tiny(name, torch.float32), raw_heads()
    base.save_pretrained(tmp_path / "base")
    hub.publish(tmp_path / "base", "someone/base")
    write(tmp_path / "heads", raw, base if write is whole_model else "someone/base")
    hub.publish(tmp_path / "heads", "someone/heads")
    model = MedusaModel.from_pretrained("someone/heads", all_heads=True)
    assert torch.equal(model.heads.tensors()["1.1.weight"], raw["1.1.weight"])
    options = {"max_new_tokens": 12, "do_sample": False}
    assert (
        model.generate(prompt(), **options).tolist() == base.generate(prompt(), **options).tolist()
    )
