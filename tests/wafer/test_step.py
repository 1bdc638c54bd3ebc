"""Whole steps: parts that add up, memory that says what fits, several systems, energy."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseflow.hardware.wafer import Network, Transformer, network_of, predict, predict_layer, predict_training, wafer
from sparseflow.hardware.wafer.memory import CODE_BYTES, check_micro_batch, largest_micro_batch, memory
from sparseflow.hardware.wafer.words import describe, to_json
from sparseflow.hardware.workload import Geometry, Workload

SMALL = Transformer(4, 512, 256, 8000)
# Cerebras-GPT, model zoo: blocks, width, and the batch that the file says is one micro-batch of one CS-2.
PUBLISHED = {
    "111M": (10, 768, 120),
    "256M": (14, 1088, 264),
    "590M": (18, 1536, 264),
    "1.3B": (24, 2048, 132),
    "2.7B": (32, 2560, 132),
    "6.7B": (32, 4096, 65),
    "13B": (40, 5120, 90),
}


def published(name: str) -> tuple[Network, int]:
    blocks, width, micro_batch = PUBLISHED[name]
    return Transformer(blocks, width, 2048, 50_257).network(), micro_batch


@settings(max_examples=25, deadline=None)
@given(
    density=st.floats(0.01, 1.0),
    batch=st.integers(4, 600),
    systems=st.sampled_from([1, 2, 4]),
    micro_batch=st.one_of(st.none(), st.integers(1, 300)),
    system=st.sampled_from(["cs2", "cs3"]),
)
def test_parts_add_up(density: float, batch: int, systems: int, micro_batch: int | None, system: str) -> None:
    step = predict_training(SMALL, batch, system, density=density, systems=systems, micro_batch=micro_batch)
    assert sum(step.parts.values()) == pytest.approx(step.seconds)
    assert min(step.parts.values()) >= 0 and sum(step.limits.values()) == pytest.approx(1)
    assert step.micro_batch * step.micro_batches * systems >= batch
    low, high = step.energy.between
    assert low == pytest.approx(0.7 * step.energy.joules) and high == pytest.approx(1.3 * step.energy.joules)
    assert 0 < step.energy.fabric < step.energy.wafers


def test_a_step_of_one_sample_waits_for_the_ports() -> None:
    step = predict_training(replace(SMALL, sequence=8), 1)
    assert step.limits["wafer I/O"] > 0.25 and step.parts["waiting for wafer I/O"] > 0


def test_bytes_of_a_step() -> None:
    network = SMALL.network(0.25)
    step = predict(network, 8, wafer(), micro_batch=4)
    nnz = sum(layer.count * layer.nnz for layer in network.layers)
    assert step.micro_batches == 2 and step.bytes_out == 2 * 4 * nnz
    head = 2 * 8000 * 512
    rows = sum(layer.count * (layer.outputs + layer.inputs) for layer in network.layers[:-1])
    # Forward and backward, twice: compressed rows, and the head dense.
    assert step.bytes_in == 2 * (2 * (4 * (nnz - head / 2) + head) + 4 * rows)


def test_sparser_is_faster_and_cheaper_but_no_faster_than_one_over_density() -> None:
    dense, sparse = (predict_training(SMALL, 512, density=density) for density in (1.0, 0.1))
    assert 1 < dense.seconds / sparse.seconds < 10
    assert sparse.energy.joules < dense.energy.joules


def test_work_of_a_mask_that_is_skewed_takes_longer() -> None:
    even, skewed = (predict_training(SMALL, 512, density=0.2, imbalance=uneven) for uneven in (1.0, 3.0))
    assert skewed.seconds > even.seconds


def test_dense_gradients_cost_an_update_step() -> None:
    network = SMALL.network(0.1)
    usual, update = (predict(network, 64, wafer(), dense_gradient=dense) for dense in (False, True))
    weights = sum(layer.count * layer.weights for layer in network.layers)
    assert update.bytes_out == 4 * weights > usual.bytes_out and update.bytes_in == usual.bytes_in
    assert update.seconds > usual.seconds


def test_several_systems_scale_by_all_but_what_is_fixed() -> None:
    one = predict_training(SMALL, 512)
    four = predict_training(SMALL, 4 * 512, systems=4)
    assert four.seconds == pytest.approx(one.seconds + (four.bubble - one.bubble))
    assert 0 < four.bubble - one.bubble < 1e-3
    efficiency = one.seconds / (4 * predict_training(SMALL, 512, systems=4).seconds)
    assert 0.2 < efficiency < 0.9


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_micro_batches_fit_where_saved_activations_may_spill(name: str) -> None:
    network, micro_batch = published(name)
    check_micro_batch(network, micro_batch, wafer())
    assert predict(network, micro_batch, wafer()).micro_batches == 1
    kept = memory(network, micro_batch, wafer())
    assert kept.resident <= kept.capacity


@pytest.mark.parametrize("name", ["2.7B", "13B"])
def test_without_spilling_the_large_published_ones_do_not(name: str) -> None:
    network, micro_batch = published(name)
    assert largest_micro_batch(network, wafer(), spill=False) < micro_batch
    assert memory(network, micro_batch, wafer()).spilled > 0


def test_a_cores_code_was_calibrated_on_the_1_3b_model() -> None:
    network, micro_batch = published("1.3B")
    most = largest_micro_batch(network, wafer(), spill=False)
    assert micro_batch <= most <= micro_batch + 1
    assert float(CODE_BYTES) == 4000
    # 24 blocks × 2,048 features × 132 samples × 2,048 tokens × 2 bytes.
    assert memory(network, micro_batch, wafer()).saved == pytest.approx(26.6e9, rel=1e-3)


def test_memory_is_reserved_at_the_lowest_sparsity_of_the_schedule() -> None:
    network = SMALL.network(0.1)
    now, later = memory(network, 8, wafer()), memory(network, 8, wafer(), densest=0.5)
    assert later.streams >= now.streams and later.store > now.store
    assert later.store == memory(SMALL.network(0.5), 8, wafer()).store
    assert memory(network, 8, wafer(), densest=0.01) == now


def test_a_micro_batch_that_exceeds_the_wafer_is_refused_with_what_fits() -> None:
    network, _ = published("13B")
    most = largest_micro_batch(network, wafer())
    with pytest.raises(ValueError, match=rf"micro-batch of {most + 1} needs .* bytes .*; a micro-batch of {most} fits"):
        predict(network, 10 * most, wafer(), micro_batch=most + 1)
    assert predict(network, 10 * most, wafer(), micro_batch=most).micro_batches == 10
    assert predict(network, 10 * most + 1, wafer()).micro_batches == 11
    with pytest.raises(ValueError, match="one sample needs"):
        predict(Transformer(1, 4096, 10_000_000, 100).network(), 1, wafer())


def test_spilled_activations_cost_time_only_where_the_ports_are_busy() -> None:
    network, micro_batch = published("13B")
    assert predict(network, micro_batch, wafer()).spill == 0
    hungry = replace(network, saved_bytes=1000 * network.saved_bytes)
    step = predict(hungry, micro_batch, wafer())
    assert step.spill > 0 and sum(step.parts.values()) == pytest.approx(step.seconds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "at least one sample a system, got 0"),
        ({"batch": 2, "systems": 4}, "got 2 over 4 systems"),
        ({"micro_batch": 0}, "micro_batch: expected 1 or more"),
        ({"system": "cs9"}, "available: cs2, cs3"),
        ({"density": 1.5}, "density in"),
    ],
)
def test_impossible_steps_are_refused(change: dict[str, object], message: str) -> None:
    options = {"batch": 8, **change}
    with pytest.raises(ValueError, match=message):
        predict_training(SMALL, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width: expected 1 or more, got 0"):
        Transformer(1, 0, 1, 1)


def test_a_layer_by_its_workload() -> None:
    linear = Workload(shape=(512, 256), rows=1000, density=0.1)
    found = predict_layer(linear)
    assert found.forward.bytes_in == pytest.approx(4 * 13_107.2 + 4 * 512) and found.update > 0
    geometry = Geometry("conv2d", padding=(1, 1))
    conv = Workload(shape=(64, 32, 3, 3), geometry=geometry, rows=8, image=(16, 16), density=0.1)
    same = Workload(shape=(64, 32 * 9), rows=8 * 16 * 16, density=0.1)
    assert predict_layer(conv).forward == predict_layer(same).forward
    assert predict_layer(linear, imbalance=4.0).forward.compute > found.forward.compute


def test_a_network_by_its_workloads() -> None:
    works = {"a": Workload(shape=(64, 32), rows=96, density=0.5), "b": Workload(shape=(10, 64), rows=96)}
    network = network_of(works, samples=32)
    assert [(layer.tokens, layer.density) for layer in network.layers] == [(3, 0.5), (3, 1.0)]
    assert network.saved_bytes == 2 * 3 * (32 + 64)
    assert predict(network, 32, wafer()).seconds > wafer().fixed
    with pytest.raises(ValueError, match="rows of b are unknown"):
        network_of({**works, "b": Workload(shape=(10, 64))}, 32)
    with pytest.raises(ValueError, match="at least one layer"):
        network_of({}, 32)


def test_everything_said_is_called_modelled() -> None:
    step = predict_training(SMALL, 64, density=0.3)
    said = describe(step)
    assert said.startswith("modelled: ") and "measured" not in said
    data = json.loads(json.dumps(to_json(step)))
    assert data["modelled"] is True and "measured" not in json.dumps(data)
    assert sum(data["parts"].values()) == pytest.approx(data["seconds"])
    assert all(part in said for part in data["parts"])
    assert torch.tensor([row["count"] * row["seconds"] for row in data["layers"]]).sum() == pytest.approx(
        step.layers_seconds, rel=1e-5
    )
