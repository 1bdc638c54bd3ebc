"""What is saved comes back bit for bit, whatever its dtype, shape and density."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_files import RawFile, assert_same, assert_same_state, small_ticket
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparseflow.files import Ticket, Weights, load, save
from sparseflow.masks.masks import Masks

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
OTHERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]
SHAPES = [
    (1,),
    (7,),
    (1000,),
    (1, 1),
    (3, 5),
    (33, 63),
    (2, 1000),
    (4, 3, 3, 3),
    (2, 2, 2, 2, 2, 1, 1, 2),
    (0, 4),
    (3, 0),
]
JSON: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OBJECTS: st.SearchStrategy[dict[str, object]] = st.dictionaries(st.text(max_size=5), JSON, max_size=3)
# One path is overwritten by each example, which the rename makes safe.
SETTINGS = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def masked_tensor(seed: int, dtype: torch.dtype, shape: tuple[int, ...], kept: int) -> tuple[Tensor, Tensor]:
    """Exactly `kept` kept weights at random places, some of them 0.0 and some -0.0."""
    generator = torch.Generator().manual_seed(seed)
    numel = math.prod(shape)
    mask = torch.zeros(numel, dtype=torch.bool)
    mask[torch.randperm(numel, generator=generator)[:kept]] = True
    values = torch.randn(numel, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 8, (numel,), generator=generator)
    values = torch.where(signs == 0, 0.0, torch.where(signs == 1, -0.0, values))
    return values.to(dtype).masked_fill(~mask, 0.0).reshape(shape), mask.reshape(shape)


@st.composite
def tickets(draw: st.DrawFn) -> Ticket:
    state: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for index in range(draw(st.integers(0, 3))):
        shape = draw(st.sampled_from(SHAPES))
        numel = math.prod(shape)
        kept = draw(st.sampled_from([0, 1, numel // 50, numel // 2, numel - 1, numel]))
        kept = min(max(kept, 0), numel)
        dtype = draw(st.sampled_from(FLOATS))
        name = f"layers.{index}.weight"
        state[name], masks[name] = masked_tensor(draw(st.integers(0, 99)), dtype, shape, kept)
    for index in range(draw(st.integers(0, 2))):
        shape = draw(st.sampled_from([(), (1,), (5,), (3, 2), (0,)]))
        state[f"buffers.{index}"] = torch.randint(0, 2, shape).to(draw(st.sampled_from(FLOATS + OTHERS)))
    plan: dict[str, object] | None = draw(st.none() | OBJECTS)
    return Ticket(Masks(masks), state, plan, draw(OBJECTS))


@SETTINGS
@given(ticket=tickets())
def test_ticket_round_trip(tmp_path: Path, ticket: Ticket) -> None:
    save(ticket, tmp_path / "ticket")
    loaded = load(tmp_path / "ticket")
    assert_same(ticket, loaded)
    assert isinstance(loaded, Ticket)
    assert loaded.digest == ticket.digest
    # Another reader takes the file too: it is plain safetensors.
    assert load_file(tmp_path / "ticket").keys() == RawFile.read(tmp_path / "ticket").header.keys()


@SETTINGS
@given(ticket=tickets())
def test_weights_round_trip_compact(tmp_path: Path, ticket: Ticket) -> None:
    weights = Weights(ticket.rewind, ticket.masks, ticket.provenance)
    save(weights, tmp_path / "weights", format="compact")
    assert_same(weights, load(tmp_path / "weights"))


@SETTINGS
@given(ticket=tickets())
def test_weights_round_trip_dense_without_kept_zeros(tmp_path: Path, ticket: Ticket) -> None:
    masks = Masks({name: ticket.rewind[name] != 0 for name in ticket.masks})
    plus = {name: ticket.rewind[name].masked_fill(~mask, 0.0) for name, mask in masks.items()}
    weights = Weights({**ticket.rewind, **plus}, masks, ticket.provenance)
    save(weights, tmp_path / "weights")
    assert_same(weights, load(tmp_path / "weights"))
    assert_same_state(weights.state, load_file(tmp_path / "weights"))


def test_pruned_places_are_plus_zero_in_a_dense_file(tmp_path: Path) -> None:
    weight = torch.tensor([[-0.0, 2.0], [3.0, -0.0]])
    save(Weights({"w": weight}, Masks({"w": weight != 0}), {}), tmp_path / "weights")
    read = load_file(tmp_path / "weights")["w"]
    assert not read.signbit().any()
    assert torch.equal(read, weight)


def test_a_dense_file_says_which_kept_zeros_it_lost(tmp_path: Path) -> None:
    save(small_ticket(), tmp_path / "ticket", format="dense")
    with pytest.warns(UserWarning, match=r"1 kept weights equal 0\.0 .* \(fc\.weight\); save with format='compact'"):
        loaded = load(tmp_path / "ticket")
    assert loaded.masks.kept == {"fc.weight": 6, "wide.weight": 3, "conv.weight": 15}


def test_each_layer_takes_the_smaller_encoding(tmp_path: Path) -> None:
    save(small_ticket(), tmp_path / "ticket")
    content = RawFile.read(tmp_path / "ticket").content
    assert content is not None
    encodings = {name: record["encoding"] for name, record in content["masked"].items()}
    assert encodings == {"fc.weight": "bitmask", "wide.weight": "csr", "conv.weight": "bitmask"}


def test_the_parts_of_a_small_layer(tmp_path: Path) -> None:
    save(small_ticket(), tmp_path / "ticket")
    raw = load_file(tmp_path / "ticket")
    assert raw["fc.weight.sp.values"].tolist() == [1, -2, 3, 0, 4, 5, 6]
    assert raw["fc.weight.sp.values"].signbit().tolist() == [False, True, False, True, False, False, False]
    # Bits 0, 2, 4, 6 | 10, 11, 13 of 15, the lowest bit first.
    assert raw["fc.weight.sp.bitmask"].tolist() == [0b01010101, 0b00101100]
    assert raw["wide.weight.sp.indptr"].tolist() == [0, 2, 3]
    assert raw["wide.weight.sp.cols"].tolist() == [3, 199, 0]
    assert raw["wide.weight.sp.cols"].dtype == torch.uint16


def test_every_tensor_is_aligned_to_its_dtype(tmp_path: Path) -> None:
    save(small_ticket(), tmp_path / "ticket")
    assert int.from_bytes((tmp_path / "ticket").read_bytes()[:8], "little") % 8 == 0
    header = RawFile.read(tmp_path / "ticket").header
    widths = {"F32": 4, "I32": 4, "I64": 8, "BF16": 2, "U16": 2, "U8": 1, "BOOL": 1}
    assert all(entry["data_offsets"][0] % widths[entry["dtype"]] == 0 for entry in header.values())


@pytest.mark.parametrize(("columns", "dtype"), [(65536, torch.uint16), (65537, torch.int32)])
def test_columns_widen_where_sixteen_bits_end(tmp_path: Path, columns: int, dtype: torch.dtype) -> None:
    weight = torch.zeros(2, columns)
    weight[0, 0] = weight[1, columns - 1] = 1.0
    weights = Weights({"w": weight}, Masks({"w": weight != 0}), {})
    save(weights, tmp_path / "weights", format="compact")
    assert load_file(tmp_path / "weights")["w.sp.cols"].dtype == dtype
    assert_same(weights, load(tmp_path / "weights"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("density", [0.5, 0.1, 0.05, 0.01])
def test_size_on_disk(tmp_path: Path, dtype: torch.dtype, density: float) -> None:
    rows, columns = 256, 2048
    nnz = int(density * rows * columns)
    weight, mask = masked_tensor(0, dtype, (rows, columns), nnz)
    save(Ticket(Masks({"w": mask}), {"w": weight}, None, {}), tmp_path / "ticket")
    bitmask, csr = rows * columns // 8, 2 * nnz + 4 * (rows + 1)
    needed = nnz * dtype.itemsize + min(bitmask, csr)
    header = 2048
    assert (tmp_path / "ticket").stat().st_size <= 1.02 * needed + header


def test_a_plain_file_loads_without_masks(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 4), "b": torch.tensor(2)}
    save_file(state, tmp_path / "plain", metadata={"format": "pt", "author": "someone"})
    loaded = load(tmp_path / "plain")
    assert isinstance(loaded, Weights)
    assert len(loaded.masks) == 0
    assert loaded.metadata == {}
    assert_same_state(state, loaded.state)
