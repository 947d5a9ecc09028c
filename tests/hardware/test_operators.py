"""The work of a model's products, and the operational intensities that the paper publishes."""

import pytest
import torch

from medusa.hardware.operators import LLAMA, ModelShape, Work, intensity_table, linear

PUBLISHED = {
    6: {
        128: "0.98 12.8 21.33 27.43 32.0 35.56 38.4 40.73",
        256: "0.99 13.47 23.27 30.72 36.57 41.29 45.18 48.43",
        512: "0.99 13.84 24.38 32.68 39.38 44.91 49.55 53.49",
        1024: "0.99 14.03 24.98 33.76 40.96 46.97 52.07 56.44",
        2048: "0.99 14.12 25.28 34.32 41.8 48.08 53.43 58.04",
        4096: "0.99 14.17 25.44 34.61 42.23 48.65 54.13 58.87",
        8192: "0.99 14.2 25.52 34.76 42.45 48.94 54.49 59.3",
    },
    7: {
        1: "0.99 14.03 24.98 33.76 40.96 46.97 52.07 56.44",
        2: "0.99 14.03 24.98 33.76 40.96 46.97 52.07 56.44",
        4: "0.99 14.03 24.98 33.76 40.96 46.97 52.07 56.44",
        8: "0.99 14.03 24.98 33.76 40.96 46.97 52.07 56.44",
        16: "0.99 14.03 24.98 33.76 40.96 46.97 52.07 56.44",
        32: "0.99 14.03 24.98 33.76 40.96 46.97 52.07 56.44",
        64: "0.99 14.03 24.98 33.76 40.96 46.97 52.07 56.44",
    },
    8: {
        1: "1.0 15.95 31.79 47.53 63.17 78.7 94.14 109.47",
        2: "2.0 31.79 63.17 94.14 124.71 154.89 184.69 214.12",
        4: "4.0 63.17 124.71 184.69 243.17 300.21 355.85 410.14",
        8: "7.99 124.71 243.17 355.85 463.14 565.44 663.07 756.36",
        16: "15.95 243.17 463.14 663.07 845.59 1012.87 1166.74 1308.76",
        32: "31.79 463.14 845.59 1166.74 1440.25 1675.97 1881.24 2061.59",
        64: "63.17 845.59 1440.25 1881.24 2221.31 2491.55 2711.46 2893.91",
    },
}
"""Operational intensities of tables 6, 7 and 8: by table, by length or batch, by candidates."""


@pytest.mark.parametrize("number", PUBLISHED)
def test_all_cells_of_the_paper_are_reproduced_to_two_decimals(number):
    found = intensity_table(number)
    assert list(found) == list(PUBLISHED[number])
    for row, published in PUBLISHED[number].items():
        for mine, theirs in zip(found[row], published.split(), strict=True):
            assert abs(mine - float(theirs)) < 0.0051, (number, row, mine, theirs)


def test_other_tables_have_no_intensities():
    with pytest.raises(ValueError, match="tables 6, 7 and 8"):
        intensity_table(5)


def test_a_product_reads_and_writes_each_number_once():
    states, weight = torch.zeros(3, 5), torch.zeros(7, 5)
    work = linear(3, 5, 7)
    assert work.numbers == states.numel() + weight.numel() + (states @ weight.mT).numel()
    assert work.weights == weight.numel()
    assert work.flops == 2 * 3 * 5 * 7
    assert work.bytes(4) == 4 * work.numbers
    assert work.intensity() == work.flops / (2 * work.numbers)


def test_grouped_heads_share_keys_and_values():
    own = ModelShape(64, 128, 2, 8, 8, 8, 100).attention(2, 3, 10)["qk"]
    shared = ModelShape(64, 128, 2, 8, 2, 8, 100).attention(2, 3, 10)["qk"]
    assert shared.flops == own.flops
    assert own.numbers - shared.numbers == 2 * 6 * 10 * 8


def test_a_step_reads_all_weights_once():
    # LLaMA-7B has 6.74 billion parameters, of which 0.13 are its embeddings
    assert LLAMA["7b"].parameters() == pytest.approx(6.607e9, rel=1e-3)
    assert LLAMA["33b"].parameters() == pytest.approx(32.32e9, rel=1e-3)
    one, many = LLAMA["7b"].step(1, 1, 1), LLAMA["7b"].step(4, 16, 1)
    assert one.weights == many.weights
    assert many.flops > 60 * one.flops


def test_work_adds_up():
    assert Work(1, 2, 1) + Work(3, 4) == Work(4, 6, 1)
    assert Work(1, 2, 1) * 3 == Work(3, 6, 3)


def test_a_shape_is_read_from_a_config():
    config = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    assert ModelShape.of(config) == ModelShape(64, 128, 2, 4, 4, 16, 100)
    grouped = ModelShape.of({"text_config": {**config, "num_key_value_heads": 2, "head_dim": 8}})
    assert (grouped.kv_heads, grouped.head_size) == (2, 8)
    with pytest.raises(ValueError, match="num_hidden_layers must be a positive whole number"):
        ModelShape.of({**config, "num_hidden_layers": "two"})
    del config["vocab_size"]
    with pytest.raises(ValueError, match="vocab_size"):
        ModelShape.of(config)
