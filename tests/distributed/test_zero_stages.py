"""Weights, masks and checkpoints of real DeepSpeed engines: every stage, fp32 and bf16, on 1 to 3 processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from zero_launches import Zygote

from sparseflow.files import Ticket, load
from sparseflow.files.commit import commit
from sparseflow.files.part import Part
from sparseflow_launchers import extract
from sparseflow_launchers.zero_files import ZeroFiles

EVERY = [f"ds_zero{stage}{dtype}" for stage in range(4) for dtype in ("", "_bf16")]
# On one process there is nothing to cut, on three the parts are uneven.
OTHER_WORLDS = {1: ["ds_zero1_bf16", "ds_zero3"], 3: ["ds_zero2", "ds_zero3_bf16"]}
CASES = [(2, name) for name in EVERY] + [(world, name) for world, names in OTHER_WORLDS.items() for name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def found(zygote: Zygote, folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    asked = {2: EVERY, **OTHER_WORLDS}
    launches = {}
    for world, names in asked.items():
        out = folder / str(world)
        out.mkdir()
        arguments = {"out": str(out), "text": str(text), "only": names}
        launches[str(world)] = {"world": world, "job": "stages", "arguments": arguments}
    for world, ended in zygote.launch(launches, folder).items():
        assert ended.statuses == [0] * int(world), ended.log[-3000:]
    looked = {world: json.loads((folder / str(world) / "found.json").read_text()) for world in asked}
    return {(world, name): looked[world][name] for world, name in CASES}


@pytest.mark.parametrize("case", CASES)
class TestEveryStage:
    def test_making_the_engine_moves_no_weight(self, found: Any, case: tuple[int, str]) -> None:
        assert found[case]["begins_as_made"]

    def test_masks_of_live_slices_are_those_of_the_whole_weights(self, found: Any, case: tuple[int, str]) -> None:
        assert found[case]["live_equals_whole"]

    def test_files_hold_what_the_engine_holds(self, found: Any, case: tuple[int, str]) -> None:
        assert found[case]["files_equal_live"]
        assert found[case]["files_stage"] == int(case[1][7])

    def test_masks_of_files_are_those_of_the_engine(self, found: Any, case: tuple[int, str]) -> None:
        assert found[case]["offline_equals_live"]

    def test_a_loaded_checkpoint_goes_on_bit_for_bit(self, found: Any, case: tuple[int, str]) -> None:
        assert found[case]["resumes"]

    def test_pruned_weights_are_zero_at_once_and_stay_so(self, found: Any, case: tuple[int, str]) -> None:
        assert found[case]["revived_at_once"] == found[case]["revived_later"] == {}
        assert found[case]["pruned_in_whole"] == 0
        assert found[case]["survivors_move"]

    def test_zeros_are_looked_for(self, found: Any, case: tuple[int, str]) -> None:
        # Without masks a step revives them, and that is seen.
        assert found[case]["revived_when_released"] > 0

    def test_checkpoints_have_no_latest_that_could_lie(self, found: Any, case: tuple[int, str]) -> None:
        shards = [name for name in found[case]["parts"] if name.endswith("optim_states.pt")]
        assert "latest" not in found[case]["parts"]
        assert len(shards) == (0 if case[1].startswith("ds_zero0") else case[0])


def test_stages_train_alike(found: Any) -> None:
    # Two addends have one sum, whoever adds them.
    for dtype in ("", "_bf16"):
        digests = {found[2, f"ds_zero{stage}{dtype}"]["digest"] for stage in range(4)}
        assert len(digests) == 1


@pytest.fixture(scope="module")
def step(found: Any, folder: Path) -> Path:
    """A checkpoint of stage 3 in bf16 by three processes."""
    return folder / "3" / "ds_zero3_bf16" / "step-000003"


@pytest.fixture
def copied(step: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(step, tmp_path / "step-000003"))


def extracted(*arguments: object) -> None:
    extract.app([str(argument) for argument in arguments], standalone_mode=False)


class TestExtract:
    def test_writes_the_ticket_of_the_live_masks(self, found: Any, step: Path, tmp_path: Path) -> None:
        extracted(step, "--rate", 0.3, "--rewind", step, "--out", tmp_path / "ticket.safetensors")
        ticket = load(tmp_path / "ticket.safetensors")
        assert isinstance(ticket, Ticket)
        assert ticket.masks.digest == found[3, "ds_zero3_bf16"]["digest"]
        state = ZeroFiles(step).state()
        assert ticket.rewind.keys() == state.keys()
        for name, tensor in state.items():
            expected = torch.where(ticket.masks[name], tensor, 0.0) if name in ticket.masks else tensor
            assert torch.equal(ticket.rewind[name], expected)
        assert ticket.round == 1 and ticket.provenance["rewind_to"] == 3

    def test_prunes_on_from_a_ticket(self, step: Path, tmp_path: Path) -> None:
        for name, more in (("first", []), ("second", ["--masks", tmp_path / "first"])):
            extracted(step, "--rate", 0.3, "--out", tmp_path / name, *more)
        first, second = load(tmp_path / "first"), load(tmp_path / "second")
        assert isinstance(first, Ticket) and isinstance(second, Ticket)
        assert second.masks.issubset(first.masks) and second.round == 2
        assert second.masks.nnz == first.masks.nnz - round(0.3 * first.masks.nnz)

    def test_filters_choose_the_weights(self, step: Path, tmp_path: Path) -> None:
        extracted(step, "--density", 0.5, "--filter", "blocks.0.mlp.*", "--out", tmp_path / "ticket")
        assert set(load(tmp_path / "ticket").masks) == {"blocks.0.mlp.up.weight", "blocks.0.mlp.down.weight"}

    def test_another_network_is_no_rewind_point(self, found: Any, step: Path, copied: Path, tmp_path: Path) -> None:
        other = ZeroFiles(step)
        other.shapes["blocks.0.mlp.up.weight"] = (1, 1)
        masks = extract.extract_masks(ZeroFiles(step), rate=0.3)
        with pytest.raises(ValueError, match=r"another network .* blocks.0.mlp.up.weight differ"):
            extract.extract_ticket(ZeroFiles(step), other, masks, {})


class TestRefusals:
    def test_a_folder_that_no_run_committed(self, copied: Path) -> None:
        (copied / "MANIFEST.json").unlink()
        with pytest.raises(ValueError, match=r"only what a run of sparseflow has committed is.*--trust"):
            ZeroFiles(copied)
        assert ZeroFiles(copied, trusted=True).stage == 3

    @pytest.mark.parametrize("place", [100, 5000, -100])
    def test_a_flipped_bit(self, copied: Path, place: int) -> None:
        file = copied / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
        data = bytearray(file.read_bytes())
        data[place] ^= 1
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"zero_pp_rank_1.*sha256"):
            ZeroFiles(copied)

    def test_a_shard_that_is_missing(self, copied: Path) -> None:
        (copied / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
        with pytest.raises(ValueError, match="missing"):
            ZeroFiles(copied)
        with pytest.raises(ValueError, match="none of rank 1"):
            ZeroFiles(copied, trusted=True)

    def test_the_last_shard_that_is_missing(self, copied: Path) -> None:
        (copied / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
        with pytest.raises(ValueError, match="of 3 ranks, got 2"):
            ZeroFiles(copied, trusted=True)

    def test_a_pickle_that_runs_something(self, tmp_path: Path) -> None:
        ran = tmp_path / "ran"

        class Harmful:
            def __reduce__(self) -> Any:
                return Path.touch, (ran,)

        def write(sink: Any) -> None:
            torch.save({"module": Harmful()}, tmp_path / "file")
            sink.write((tmp_path / "file").read_bytes())

        # Even where a manifest vouches for it.
        commit(tmp_path / "step", lambda: {"mp_rank_00_model_states.pt": Part(write, 1000)})
        with pytest.raises(ValueError, match="expected what DeepSpeed writes by itself"):
            ZeroFiles(tmp_path / "step")
        assert not ran.exists()

    def test_a_checkpoint_of_a_cut_model(self, copied: Path) -> None:
        (copied / "bf16_zero_pp_rank_0_mp_rank_01_optim_states.pt").touch()
        with pytest.raises(ValueError, match="without model, pipeline or expert parallelism"):
            ZeroFiles(copied, trusted=True)
