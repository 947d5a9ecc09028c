"""Exported heads in vLLM's own Medusa model; runs where vLLM is installed.

vLLM up to 0.32 has the model. It installs without a GPU in an environment of its own:
`VLLM_TARGET_DEVICE=empty pip install --no-build-isolation <vllm-0.32.0.tar.gz from PyPI>`.
"""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_export import model_with

from medusa.formats.export import ENGINES
from medusa.loading.export import Export

pytest.importorskip("vllm.model_executor.models.medusa", reason="vLLM up to 0.32 is not installed")


@pytest.fixture(scope="module")
def vllm_config(tmp_path_factory):
    """vLLM's configuration of a process group with one process."""
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    place = tmp_path_factory.mktemp("group") / "store"
    config = VllmConfig(device_config=DeviceConfig(device="cpu"))
    with set_current_vllm_config(config):
        parallel_state.init_distributed_environment(1, 0, f"file://{place}", 0, backend="gloo")
        parallel_state.initialize_model_parallel()
        yield config
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


def vllm_logits(folder, file, hidden):
    """Return the logits of a folder of heads, loaded and computed by vLLM."""
    from vllm.model_executor.models.medusa import Medusa
    from vllm.transformers_utils.configs.medusa import MedusaConfig

    config = MedusaConfig.from_pretrained(str(folder))
    draft = SimpleNamespace(draft_model_config=SimpleNamespace(hf_config=config))
    model = Medusa(vllm_config=SimpleNamespace(speculative_config=draft))
    loaded = model.load_weights(load_file(folder / file).items())
    assert loaded == set(dict(model.named_parameters())) - {"token_map"}, "vLLM reads every weight"
    with torch.inference_mode():
        return torch.stack(model.compute_logits(model(hidden)))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["vllm", "common", "tgi"])
@pytest.mark.parametrize("draft", [None, 7])
def test_vllm_computes_the_logits_of_the_model(vllm_config, tmp_path, name, layers, own, draft):
    if name == "tgi" and not own and layers == 1:
        pytest.skip("TGI shares the base model's lm_head, of which vLLM needs a copy")
    model = model_with(own_lm_head=own, num_layers=layers)
    engine = ENGINES[name]
    if draft is not None:
        model.heads.restrict(torch.arange(3, 3 + draft))
    export = Export.of(model, engine)
    export.write(tmp_path / "heads", "owner/base")
    lm_head = model.base.get_output_embeddings()
    hidden = torch.randn(5, lm_head.weight.shape[1])
    with torch.inference_mode():
        expected = model.heads(hidden, lm_head)
        if export.config.draft_vocab_size is not None:
            expected = model.heads.proposed(expected)
    found = vllm_logits(tmp_path / "heads", engine.file, hidden)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
