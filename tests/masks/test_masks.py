import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.masks import Masks, pack_bits, unpack_bits

shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)


def little() -> Masks:
    return Masks({"b": torch.tensor([[True, False], [True, True]]), "a": torch.tensor([False, True])})


def test_counts_and_densities() -> None:
    masks = little()
    assert (masks.nnz, masks.total, masks.density) == (4, 6, 4 / 6)
    assert masks.kept == {"b": 3, "a": 1}
    assert masks.densities == {"b": 0.75, "a": 0.5}


def test_what_is_not_a_bool_tensor_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"'fc.weight': expected dtype torch.bool, got torch.uint8"):
        Masks({"fc.weight": torch.ones(2, dtype=torch.uint8)})
    with pytest.raises(TypeError, match=r"'fc.weight': expected a bool tensor, got list"):
        Masks({"fc.weight": [True]})  # type: ignore[dict-item]


def test_mapping_is_a_snapshot_and_cannot_be_assigned() -> None:
    source = dict(little())
    masks = Masks(source)
    source.clear()
    assert list(masks) == ["b", "a"]
    with pytest.raises(TypeError):
        masks["a"] = torch.ones(2, dtype=torch.bool)  # type: ignore[index]


def test_equality_is_by_names_shapes_and_content() -> None:
    masks = little()
    assert masks == Masks({"a": masks["a"].clone(), "b": masks["b"].clone()})
    assert masks == dict(masks)
    assert masks != Masks({"a": ~masks["a"], "b": masks["b"]})
    assert masks != Masks({"a": masks["a"], "b": masks["b"].view(4)})
    assert masks != Masks({"a": masks["a"]})
    assert masks != 3


def test_copies_and_pickles() -> None:
    masks = little()
    assert copy.deepcopy(masks) == masks
    assert pickle.loads(pickle.dumps(masks)) == masks


def test_digest_ignores_order_and_strides_but_not_names_shapes_or_bits() -> None:
    masks = little()
    strided = masks["b"].t().contiguous().t()
    assert masks.digest == Masks({"a": masks["a"], "b": strided}).digest
    others = [
        Masks({"a": masks["a"], "c": masks["b"]}),
        Masks({"a": masks["a"], "b": masks["b"].view(4)}),
        Masks({"a": masks["a"], "b": masks["b"].t()}),
    ]
    assert len({masks.digest, *(other.digest for other in others)}) == 4


def test_digest_stays_what_files_have_recorded() -> None:
    assert little().digest == "b1309a48ea584a40837a1654c9149888202448e20fab27b146d413c804761072"


def test_ones_keeps_everything() -> None:
    masks = Masks.ones({"a": (2, 3), "b": (0,)})
    assert masks.kept == {"a": 6, "b": 0}
    assert masks.density == 1.0
    assert masks["a"].shape == (2, 3)


def test_to_shares_what_is_there_already() -> None:
    masks = little()
    assert masks.to("cpu")["a"] is masks["a"]
    assert masks.to("meta")["a"].device.type == "meta"


def test_issubset() -> None:
    masks = little()
    fewer = Masks({"a": torch.tensor([False, False]), "b": masks["b"]})
    assert fewer.issubset(masks)
    assert masks.issubset(masks)
    assert not masks.issubset(fewer)
    with pytest.raises(ValueError, match=r"only here: \['b'\], only there: \[\]"):
        masks.issubset({"a": masks["a"]})


def test_check_names_the_nearest_and_the_shapes() -> None:
    masks = Masks.ones({"fc1.weight": (2, 3)})
    masks.check({"fc1.weight": (2, 3), "fc2.weight": (1, 2)})
    with pytest.raises(ValueError, match=r"no parameter 'fc1.weight'.*did you mean 'fc.weight'"):
        masks.check({"fc.weight": (2, 3)})
    with pytest.raises(ValueError, match=r"'fc1.weight': expected shape \(3, 2\), got \(2, 3\)"):
        masks.check({"fc1.weight": (3, 2)})


def test_repr_is_a_table() -> None:
    assert repr(little()).splitlines() == [
        "parameter  shape  kept   density",
        "b            2×2     3  75.0000%",
        "a              2     1  50.0000%",
        "total          6     4  66.6667%",
    ]


def test_bits_are_row_major_and_little() -> None:
    mask = torch.tensor([[True, False, False], [False, False, False], [False, False, True]])
    assert pack_bits(mask).tolist() == [1, 1]
    assert pack_bits(mask.t()).tolist() == [1, 1]
    assert pack_bits(torch.tensor([[True, True], [False, False]]).t()).tolist() == [0b0101]


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(shape: tuple[int, ...], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack_bits(mask)
    assert bits.dtype == torch.uint8
    assert bits.tolist() == np.packbits(mask.numpy(), bitorder="little").tolist()
    assert torch.equal(unpack_bits(bits, shape), mask)


@pytest.mark.parametrize(
    ("bits", "shape", "message"),
    [
        ([255, 1], (8,), "expected 1 bytes in one dimension"),
        ([], (1,), "expected 1 bytes"),
        ([[1]], (1,), "one dimension"),
        ([0b1000], (3,), "expected the last 5 pad bits to be zero, got a last byte of 0x08"),
    ],
)
def test_damaged_bits_are_refused(bits: list[int], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_bits(torch.tensor(bits, dtype=torch.uint8), shape)


def test_bits_and_masks_of_another_dtype_are_refused() -> None:
    with pytest.raises(TypeError, match=r"torch.uint8, got torch.int64"):
        unpack_bits(torch.tensor([1]), (1,))
    with pytest.raises(TypeError, match=r"torch.bool, got torch.float32"):
        pack_bits(torch.ones(3))
