"""Loading compiles where a calibration found that faster, and chooses the machine's fast dtype."""

import json

import pytest
import torch
from models import tiny

from medusa import MedusaModel
from medusa.loading import checks


@pytest.fixture
def heads(tmp_path):
    base = tiny(dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    model = MedusaModel.from_base(tmp_path / "base", num_heads=2)
    model.save_pretrained(tmp_path / "heads")
    return tmp_path / "heads"


def calibrate(heads, **made):
    file = heads / "medusa_tree.json"
    tree = json.loads(file.read_text())
    tree |= {"accuracies": [[0.5, 0.6]] * 2, "latency": {"1": 1.0, "8": 1.2}}
    tree["made"] = {**tree.get("made", {}), **made}
    file.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("made", "compiled"),
    [
        ({"compiled": True, "torch": torch.__version__}, True),
        ({"compiled": False, "torch": torch.__version__}, False),
        ({"compiled": True, "torch": "2.0.0"}, False),
        ({}, False),
    ],
)
def test_a_model_is_compiled_where_its_calibration_found_that_faster(heads, made, compiled):
    calibrate(heads, **made)
    assert MedusaModel.from_pretrained(heads).compiled is compiled
    for chosen in (True, False):
        assert MedusaModel.from_pretrained(heads, compiled=chosen).compiled is chosen


@pytest.mark.filterwarnings("ignore:the tree of .* was calibrated on")
def test_a_calibration_of_another_machine_does_not_compile(heads):
    calibrate(heads, compiled=True, torch=torch.__version__, device="another machine")
    assert not MedusaModel.from_pretrained(heads).compiled


@pytest.mark.parametrize("fast", [torch.float32, torch.bfloat16])
def test_dtype_auto_is_the_fast_one_on_a_cpu(heads, monkeypatch, fast):
    monkeypatch.setattr(checks, "fast_dtype", lambda stored: fast)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert MedusaModel.from_pretrained(heads, dtype="auto").dtype == fast
    assert MedusaModel.from_pretrained(heads).dtype == torch.bfloat16
    assert MedusaModel.from_pretrained(heads, dtype=torch.float64).dtype == torch.float64


def test_dtype_auto_is_the_checkpoints_own_on_a_machine_with_a_gpu(heads, monkeypatch):
    monkeypatch.setattr(checks, "fast_dtype", lambda stored: torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert MedusaModel.from_pretrained(heads, dtype="auto").dtype == torch.bfloat16
