from pathlib import Path

import pytest

from sparseflow.resolve import call, resolve

MODULE = """
class Nested:
    @staticmethod
    def deep(): return 7
def shallow(): return 5
constant = 3
"""


@pytest.fixture
def user_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_nets.py").write_text(MODULE)
    (tmp_path / "user_broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(("reference", "result"), [("user_nets:shallow", 5), ("user_nets:Nested.deep", 7)])
def test_functions_are_found(user_modules: None, reference: str, result: int) -> None:
    assert resolve(reference)() == result


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("user_nets", "expected module:function"),
        ("user_nets:", "expected module:function"),
        (":shallow", "expected module:function"),
        (".user_nets:shallow", "full name of a module"),
        ("user_netz:shallow", "no module 'user_netz'"),
        ("user_nets.sub:shallow", "no module 'user_nets.sub'"),
        ("user_nets:shalow", "did you mean 'shallow'. available: Nested, shallow"),
        ("user_nets:constant", "expected a function at 'user_nets:constant', got int"),
    ],
)
def test_wrong_references_are_explained(user_modules: None, reference: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(reference)


def test_an_error_inside_the_users_module_is_left_as_it_is(user_modules: None) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        resolve("user_broken:anything")


def net(width: int, rate: float = 0.5, label: str | None = None, sizes: list[int] | None = None) -> tuple[object, ...]:
    return width, rate, label, sizes


def anything(**options: object) -> dict[str, object]:
    return options


def test_options_that_fit_are_passed_on() -> None:
    assert call(net, {"width": 3, "rate": 1, "label": None, "sizes": [1]}, "net") == (3, 1, None, [1])
    assert call(anything, {"new": 1}, "anything") == {"new": 1}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "net needs the options width; got none"),
        ({"width": 1, "rat": 1}, ValueError, "no option of net 'rat'; did you mean 'rate'"),
        ({"width": "3"}, TypeError, "option width of net: expected int, got '3'"),
        ({"width": True}, TypeError, "option width of net: expected int, got True"),
        ({"width": 3.0}, TypeError, "option width of net: expected int, got 3.0"),
        ({"width": 3, "label": 4}, TypeError, r"option label of net: expected str \| None, got 4"),
    ],
)
def test_options_that_do_not_fit_are_explained(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(net, options, "net")


def test_hints_that_cannot_be_looked_up_check_nothing() -> None:
    def lazy(width: "NotImported") -> object:  # type: ignore[name-defined]  # noqa: F821
        return width

    assert call(lazy, {"width": "any"}, "lazy") == "any"
