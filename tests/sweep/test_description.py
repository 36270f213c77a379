"""The file of a sweep: which members it describes, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gsio.errors import UsageError
from gsio.sweep.description import load_sweep
from gsio.sweep.plan import Plan, make_plan

Write = Callable[..., Path]


def plan_of(path: Path, ending: str = ".zarr") -> Plan:
    return make_plan(load_sweep(path), path.with_suffix(ending))


def test_a_product_has_an_axis_for_each_key_and_counts_the_last_one_fastest(write: Write) -> None:
    plan = plan_of(write())
    assert [(axis.name, axis.size) for axis in plan.axes] == [("feed", 4), ("kill", 2)]
    assert [plan.members[number].model.kill for number in range(4)] == [0.05, 0.06, 0.05, 0.06]
    assert [plan.members[number].model.feed for number in (0, 2, 4, 6)] == pytest.approx([0.02, 0.03, 0.04, 0.05])
    assert [task.members for task in plan.tasks] == [(0, 1, 2), (3, 4, 5), (6, 7)]


def test_keys_that_are_zipped_vary_together(write: Write) -> None:
    text = 'combine = "zip"\nmodel.feed = { values = [0.02, 0.03] }\ninitial.seed = { values = [4, 5] }'
    plan = plan_of(write(f"[sweep]\n{text}"))
    assert [axis.name for axis in plan.axes] == ["member"]
    assert [(config.model.feed, config.initial.seed) for config in plan.members] == [(0.02, 4), (0.03, 5)]


def test_a_logarithmic_range_has_a_constant_factor(write: Write) -> None:
    plan = plan_of(write('[sweep]\nmodel.kill = { from = 0.01, to = 0.04, count = 3, spacing = "log" }'))
    assert [config.model.kill for config in plan.members] == pytest.approx([0.01, 0.02, 0.04])


def test_a_latin_hypercube_has_one_member_in_each_row_and_column_and_the_same_with_the_same_seed(write: Write) -> None:
    text = "[sweep]\nsamples = 9\nseed = {}\nmodel.feed = {{ from = 0.0, to = 0.9 }}\n"
    text += "model.kill = {{ from = 0.0, to = 0.9 }}\ninitial.seed = {{ values = [1, 2] }}"
    plan, same, other = (plan_of(write(text.format(seed))) for seed in (3, 3, 4))
    assert [(axis.name, axis.size) for axis in plan.axes] == [("member", 9), ("seed", 2)]
    for name in ("feed", "kill"):
        values = np.array([getattr(config.model, name) for config in plan.members[::2]])
        assert sorted(np.floor(values * 10)) == list(range(9))
    assert plan.members == same.members != other.members


def test_a_batch_holds_members_that_differ_in_their_rates_and_seeds_only(write: Write) -> None:
    text = '[sweep]\ngrid.boundary = { values = ["zero", "periodic"] }\ninitial.seed = { values = [5, 6] }'
    plan = plan_of(write(text))
    assert [task.members for task in plan.tasks] == [(0, 1), (2, 3)]
    assert plan.run_of((2, 3)).initial.seed == (5, 6)
    assert plan.run_of((2, 3)).grid.boundary == "periodic"
    plan = plan_of(write(f"{text}\nmodel.feed = {{ values = [0.02, 0.03] }}"))
    assert [task.members for task in plan.tasks] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert plan.run_of((0, 1)).initial.seed == 5
    assert plan.run_of((1, 2)).model.feed == (0.03, 0.02)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"expected a table \[sweep\]"),
        ("[sweep]", "expected one or more keys that vary"),
        ("[sweep]\ncombin = 'zip'\n", "unknown key 'sweep.combin'; did you mean 'combine'?"),
        ("[sweep]\ncombine = 'add'\nmodel.feed = { values = [0.1] }", "sweep.combine: invalid enum value 'add'"),
        ("[sweep]\nmodel.fed = { values = [0.1] }", "unknown key 'model.fed'; did you mean 'model.feed'?"),
        ("[sweep]\nmodel.feed = { values = [0.1], cout = 3 }", "'sweep.model.feed.cout'; did you mean 'count'"),
        ("[sweep]\nmodel.feed = [0.1, 0.2]", "sweep.model.feed: expected { values = "),
        ("[sweep]\nmodel.feed = { values = [] }", "sweep.model.feed: expected { values = "),
        ("[sweep]\nmodel.feed = { from = 0.0, to = 0.1, count = 3, spacing = 'log' }", "sweep.model.feed: expected"),
        ("[sweep]\nmodel.feed = { from = 0.0, to = 0.1 }", "sweep.samples: expected the number of members"),
        ("[sweep]\nsamples = 3\nmodel.feed = { values = [0.1] }", "sweep.samples: expected the number of members"),
        ("[sweep]\ngrid.rows = { values = [8, 9] }", "sweep.grid.rows: expected a key of model or initial"),
        ("[sweep]\nmodel.feed = { values = [0.1, 2.0] }", r"member 1 \(feed 2\): model.feed: expected a number >= 0"),
        ("[sweep]\nmodel.feed = { values = [[0.1, 0.2]] }", "member 0 .*: expected one value, for a sweep makes the"),
        ("[sweep]\nmodel.dt = { values = [1.0, 9.0] }", r"member 1 \(dt 9\): model.dt: 9 is unstable"),
        ("[sweep]\nmodel.precision = { values = ['float32', 'float64'] }", "member 1 .*: expected the same type"),
        ("[sweep]\ncombine = 'zip'\nmodel.feed = { values = [0.1] }\nmodel.kill = { values = [0.1, 0.2] }",
         "sweep: expected equally many values of all keys that are zipped, got 1 of model.feed, 2 of model.kill"),
        ("[sweep]\ninitial.seed = { from = 0, to = 2000000, count = 2000000 }", "at most 1000000 members"),
    ],
)  # fmt: skip
def test_a_wrong_description_is_refused_in_words(text: str, words: str, write: Write) -> None:
    with pytest.raises(UsageError, match=words):
        plan_of(write(text))
