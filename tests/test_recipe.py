"""Promise: a recipe says which plan a tensor takes, as text that comes back the same, and what it cannot mean is refused with the place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import STAGE_ROWS

import modelcodec
from modelcodec import planner
from modelcodec.errors import BadRecipe, ModelCodecError
from modelcodec.recipe import Recipe, Rule, parse_plan
from modelcodec.stages import STAGES, stage_of
from modelcodec.types import DTYPE_BY_NAME, DTYPES, TensorSpec

PLANS = [plan for row in STAGE_ROWS for plan in row.plans]


@pytest.mark.parametrize("text", PLANS)
def test_plans_come_back_from_their_text(text: str) -> None:
    plan = parse_plan(text)
    assert parse_plan(str(plan)) == plan
    assert parse_plan(f"  {text.replace(',', ' , ').replace(':', ' : ')} ") == plan


@given(data=st.data())
def test_any_tree_comes_back(data: st.DataObject) -> None:
    options = {"rans": ["", "{table_bits=8}"], "zstd": ["", "{level=9}"], "split_float": ["", "{low_bits=0}"], "widen": ["{kind=5}"], "palette": ["{most=3}"]}
    kinds = [kind for kind in map(stage_of, STAGES) if not kind.fitted]

    def tree(depth: int) -> str:
        kind = data.draw(st.sampled_from(kinds))
        text = kind.name + data.draw(st.sampled_from(options.get(kind.name, [""])))
        parts = data.draw(st.lists(st.sampled_from(kind.parts), unique=True, max_size=3)) if kind.parts and depth < 4 else []
        return text + (f"({', '.join(f'{part}:{tree(depth + 1)}' for part in parts)})" if parts else "")

    plan = parse_plan(tree(0))
    assert parse_plan(str(plan)) == plan


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "nothing",
        "rans(",
        "rans)",
        "rans{",
        "rans{}x",
        "rans{table_bits}",
        "rans{table_bits=}",
        "rans{table_bits=x}",
        "rans{table_bits=-8}",
        "rans{other=1}",
        "rans(symbols:raw)",
        "split_float(symbols)",
        "split_float(symbols:)",
        "split_float(other:raw)",
        "split_float(symbols:rans",
        "rans rans",
        "raw{x=1}",
        "rans{table_bits=٣}",
        "palette(indices:rans) extra",
        "zstd{level=9999999999}",
        "split_float(:rans)",
        "(raw)",
        "planes(plane 8:raw)",
        "split_float(symbols:raw, symbols:rans)",
        "rans{table_bits=8, table_bits=9}",
        "sparse(mask:" * 9 + "raw" + ")" * 9,
        "sparse(mask:" * 20_000,
    ],
)
def test_bad_plans_are_refused(text: str) -> None:
    with pytest.raises(BadRecipe, match=r"plan|is no whole number"):
        parse_plan(text)


@given(text=st.text(alphabet="rawnsplit_floatzd{}()=:,0123 \n\"'", max_size=40))
def test_any_text_is_a_plan_or_refused(text: str) -> None:
    try:
        parse_plan(text)
    except BadRecipe as error:
        assert len(str(error)) < 1000  # noqa: PT017


def test_toml_comes_back() -> None:
    recipe = Recipe(
        (
            Rule("model.*.bias", ("F32", "BF16"), parse_plan("raw")),
            Rule('odd "names" \\ \n\u20ac', (), None, 9),
            Rule("*", (), parse_plan("split_float{low_bits=5}(symbols:rans)"), None),
        )
    )
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert Recipe.from_toml("") == Recipe()
    assert Recipe().to_toml() == ""


@given(
    rules=st.lists(
        st.builds(
            Rule,
            st.text(min_size=1),
            st.lists(st.sampled_from([d.name for d in DTYPES])).map(tuple),
            st.sampled_from(PLANS).map(parse_plan) | st.none(),
            st.sampled_from([None, 1, 5, 9]),
        )
    )
)
def test_any_recipe_comes_back(rules: list[Rule]) -> None:
    recipe = Recipe(tuple(rules))
    assert Recipe.from_toml(recipe.to_toml()) == recipe


@pytest.mark.parametrize(
    "text",
    [
        "[[rule]",
        "rule = 1",
        "x = 1",
        "[[rule]]\nplan = 'nothing'",
        "[[rule]]\nlevel = 3",
        "[[rule]]\nlevel = '5'",
        "[[rule]]\ndtypes = ['F99']",
        "[[rule]]\ndtypes = 'F32'",
        "[[rule]]\ndtypes = [1]",
        "[[rule]]\ntensors = 1",
        "[[rule]]\nother = 1",
        "[[other]]",
        "[rule]",
        "rule = [1]",
        "[[rule]]\nlevel = true",
        "[[rule]]\nlevel = 99999999999999999999",
    ],
)
def test_bad_recipes_are_refused(text: str) -> None:
    with pytest.raises(BadRecipe):
        Recipe.from_toml(text)


def test_the_first_rule_that_matches_is_taken() -> None:
    recipe = Recipe((Rule("a*", ("F32",), parse_plan("raw")), Rule("a*", (), parse_plan("zstd")), Rule("b", level=1)))
    x = np.arange(1000, dtype=np.uint32)

    def plan(name: str, dtype: str) -> str:
        return str(recipe.plan(TensorSpec(name, DTYPE_BY_NAME[dtype], (1000,)), x, 9))

    assert plan("ab", "F32") == "raw"
    assert plan("ab", "I32") == "zstd"
    spec = TensorSpec("b", DTYPE_BY_NAME["I32"], (1000,))
    assert plan("b", "I32") == str(planner.plan(spec, x, 1))
    assert plan("B", "I32") == str(planner.plan(spec, x, 9))


def test_a_recipe_decides_what_is_written(tmp_path: object) -> None:
    array = np.tile(np.arange(50, dtype=np.float32), 40)
    data = modelcodec.save({"x": array, "y": array + 1}, recipe=Recipe.from_toml("[[rule]]\ntensors = 'x'\nplan = 'zstd'"))
    with modelcodec.tensor_file.TensorFile.of_bytes(data) as file:
        heads = {entry.name: str(file._source.frame_head(entry, 0).root) for entry in file._source.tensors}
        assert heads["x"] == "zstd"
        assert heads["y"] != "zstd"
        assert np.array_equal(file.get_tensor("x"), array)


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_for_everything_is_lossless(plan: str) -> None:
    """Whatever a recipe asks for, the file comes back; a plan that fits nothing costs bytes, not data."""
    arrays = {
        "a": np.linspace(-1, 1, 300, dtype=np.float32),
        "b": np.arange(90).reshape(9, 10),
        "c": np.zeros(0),
        "d": np.float64(3),
        "e": np.tile(np.uint8([0, 0, 7]), 100),
    }
    try:
        loaded = modelcodec.load(modelcodec.save(arrays, recipe=Recipe((Rule(plan=parse_plan(plan)),))))
    except ModelCodecError as error:
        raise AssertionError(plan) from error
    assert all(np.array_equal(loaded[name], array) for name, array in arrays.items())
