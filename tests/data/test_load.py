import importlib.util
from pathlib import Path

import pytest
import torch

from sparseflow import data


def test_digits_are_split_three_ways() -> None:
    digits = data.load("digits", {"flat": False})
    sizes = [len(split) for split in (digits.train, digits.validation, digits.test)]
    images = [
        split.batch(torch.arange(n))[0] for split, n in zip((digits.train, digits.validation, digits.test), sizes)
    ]
    assert sizes == [1197, 300, 300]
    assert {tuple(part.shape[1:]) for part in images} == {(1, 8, 8)} == {digits.input_shape}
    everything = torch.cat(images)
    assert (everything.min().item(), everything.max().item()) == (0, 1)
    assert everything.dtype == torch.float32


def test_digits_are_the_same_every_time_and_keep_their_labels() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    inputs, targets = data.digits().validation.batch(torch.arange(300))
    assert torch.equal(targets, torch.from_numpy(labels)[order[:300]])
    assert torch.equal(inputs, (torch.from_numpy(pixels) / 16).float()[order[:300]])


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        data.load("digits", {})
    assert data.available()["digits"] == "not here: run `pip install scikit-learn`"


def test_available_says_where_data_is_or_how_to_get_it(bare_machine: Path) -> None:
    file = bare_machine / "bible-kjv/bible-kjv.txt"
    file.parent.mkdir(parents=True)
    file.touch()
    assert data.available() == {
        "fashion_mnist": "not here: run `sparseflow data fashion_mnist`",
        "digits": str(data.fetch("digits")),
        "text": str(file),
    }


def test_fetch_finds_what_is_there_by_name() -> None:
    assert data.fetch("digits").is_file()
    with pytest.raises(ValueError, match="did you mean 'fashion_mnist'"):
        data.fetch("fashion-mnist")


def test_unknown_names_get_the_nearest_match_and_the_list() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'digits'\? available: digits, fashion_mnist, module:f"):
        data.load("digit", {})


def test_unknown_options_get_the_nearest_match_and_the_list() -> None:
    with pytest.raises(ValueError, match="no option of text 'contxt'; did you mean 'context'"):
        data.load("text", {"contxt": 3})


def test_options_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(TypeError, match="option flat of digits: expected bool, got 'yes'"):
        data.load("digits", {"flat": "yes"})


def test_the_users_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data.py").write_text(
        "from sparseflow.data import digits\ndef good(flat=True): return digits(flat)\ndef bad(): return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert data.load("own_data:good", {"flat": False}).input_shape == (1, 8, 8)
    with pytest.raises(TypeError, match=r"must return a sparseflow\.data\.Data, got int"):
        data.load("own_data:bad", {})
