import os

import torch

from medusa.runtime.compiled import CACHE_VARIABLE, Program


def scaled_into(values, *tensors):
    stores, scale = tensors[:2], tensors[2]
    width = values.shape[1]
    for store in stores:
        store[0, :, :width, 0] = scale * values
    return (stores[1][0, :, :width, 0].sum(1) + width,)


def arguments(columns, width, dtype=torch.float32):
    return [torch.randn(3, width).to(dtype)], [
        torch.zeros(1, 3, columns, 4, dtype=dtype) for _ in range(2)
    ]


def test_one_program_serves_all_sizes_and_weights_and_writes_in_place():
    program = Program(scaled_into, *arguments(20, 5), [torch.tensor([3.0])])
    for columns, width, scale in ((20, 5, 2.0), (20, 7, 3.0), (300, 250, -1.0)):
        (values,), stores = arguments(columns, width)
        assert program.fits([values, *stores])
        (found,) = program([values, *stores, torch.tensor([scale])])
        for store in stores:
            torch.testing.assert_close(store[0, :, :width, 0], scale * values)
            assert not store[0, :, width:].any()
        torch.testing.assert_close(found, scale * values.sum(1) + width)


def test_a_program_fits_only_sizes_and_dtypes_that_it_serves():
    program = Program(scaled_into, *arguments(20, 5), [torch.tensor([3.0])])
    for width, dtype, fits in (
        (6, torch.float32, True),
        (1, torch.float32, False),
        (5, torch.float64, False),
    ):
        (values,), stores = arguments(20, width, dtype)
        assert program.fits([values, *stores]) is fits


def raised_by(number):
    return lambda values: (values + number,)


def test_compiled_code_is_kept_in_the_cache_folder_or_in_that_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    Program(raised_by(31), [torch.zeros(3)], [])
    assert CACHE_VARIABLE not in os.environ
    assert list((tmp_path / "cache" / "medusa" / "compiled").rglob("*.cpp"))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "own"))
    Program(raised_by(37), [torch.zeros(3)], [])
    assert list((tmp_path / "own").rglob("*.cpp"))
