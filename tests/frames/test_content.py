"""The content of an output: what it may be, how it is recorded, and that of a run."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gsio.config import Config
from gsio.errors import DataError, UsageError
from gsio.frames.content import Axis, Content, Quantity, content_of

PLANE = Content(
    fields={"density": Quantity("number density", "m-3"), "T_e": Quantity("electron temperature", "eV")},
    axes=(Axis("y", 12, "height", "m", -1.5, 0.25), Axis("x", 17, "length", "m")),
    precision="float32",
    store="uint16",
    interval=0.5,
)


def test_a_content_comes_back_from_its_text() -> None:
    assert content_of({"content": PLANE.to_toml()}) == PLANE
    assert PLANE.checked() == PLANE
    np.testing.assert_array_equal(PLANE.axes[0].values, np.linspace(-1.5, 1.25, 12))


def test_the_content_of_a_run_follows_from_its_configuration(make_config: Callable[..., Config]) -> None:
    config = make_config({"model.feed": [0.02, 0.03, 0.04], "output.fields": "u,v", "output.store": "float16"})
    content = content_of({"config": config.to_toml(), "content": "a run records none"})
    assert [(axis.name, axis.size) for axis in content.axes] == [("member", 3), ("y", 12), ("x", 17)]
    assert (content.precision, content.store, content.interval) == ("float32", "float16", 3.0)
    assert [quantity.long_name for quantity in content.fields.values()] == ["concentration of U", "concentration of V"]


@pytest.mark.parametrize(
    ("shape", "volume"),
    [((17,), (1, 1, 17)), ((12, 17), (1, 12, 17)), ((5, 12, 17), (5, 12, 17)), ((3, 5, 12, 17), (15, 12, 17))],
    ids=str,
)
def test_a_frame_is_seen_as_members_of_rows_and_columns(shape: tuple[int, ...], volume: tuple[int, ...]) -> None:
    axes = tuple(Axis(name, size) for name, size in zip("abcd", shape, strict=False))
    assert tuple(axis.size for axis in replace(PLANE, axes=axes).volume) == volume


def changed(**changes: Any) -> str:
    """Return the text of a content in which each of `changes` replaces a part of the text of `PLANE`."""
    text = PLANE.to_toml()
    for new in changes.values():
        before, after = new
        assert before in text
        text = text.replace(before, after)
    return text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "axes = 3",
        "a = " + "[" * 100_000,
        "a" * (2 << 20),
        changed(name=('name = "y"', 'name = "../y"')),
        changed(name=('name = "y"', 'name = "x"')),
        changed(name=('name = "y"', 'name = "time"')),
        changed(name=('name = "y"', 'name = "y\\n"')),
        changed(field=("[fields.density]", "[fields.VTKHDF]")),
        changed(field=("[fields.density]", "[fields.x]")),
        changed(words=("number density", "d" * 1001)),
        changed(words=("number density", "\\u0000")),
        changed(size=("size = 12", "size = 0")),
        changed(size=("size = 12", "size = 9_000_000_000")),
        changed(size=("size = 12", "size = 2147483647"), other=("size = 17", "size = 2147483647"),
                more=("axes = [", 'axes = [{ name = "z", size = 9 }, ')),
        changed(spacing=("spacing = 0.25", "spacing = nan")),
        changed(spacing=("spacing = 0.25", "spacing = 0")),
        changed(interval=("interval = 0.5", "interval = -1")),
        changed(store=('store = "uint16"', 'store = "int16"')),
        changed(store=('store = "uint16"', 'store = "complex64"')),
        changed(compression=('compression = "auto"', 'compression = "none of these"')),
        changed(unknown=("pyramid = 0", "pyramid = 0\nmore = 1")),
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_text_that_is_no_content_is_an_error_of_the_data(text: str) -> None:
    with pytest.raises(DataError, match="expected the content of an output, found another text"):
        content_of({"content": text})


@pytest.mark.parametrize("attributes", [{}, {"content": 3}, {"config": b"x"}, {"content": [1, 2]}], ids=str)
def test_attributes_without_a_content_are_an_error_of_the_data(attributes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected the attribute 'config' or 'content'"):
        content_of(attributes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fields": {"a b": Quantity()}}, "regex"),
        ({"axes": tuple(Axis(name, 2) for name in "abcde")}, "length <= 4"),
        ({"level": 12}, "<= 9"),
        ({"precision": "bool", "store": "bool"}, "invalid enum value"),
    ],
    ids=str,
)
def test_what_a_caller_may_not_give_is_an_error_of_the_usage(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        replace(PLANE, **change).checked()


def test_coordinates_have_to_be_finite() -> None:
    with pytest.raises(ValueError, match="finite coordinates"):
        Axis("x", 3, spacing=math.inf)
