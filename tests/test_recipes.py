# SPDX-License-Identifier: Apache-2.0
"""Recipes are frozen, listed, and say themselves whether they can be deployed."""

from dataclasses import FrozenInstanceError, replace

import pytest

from qhyvit_onnx.config import CompileConfig, Effort, Guard, Learning, Scope
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.methods import Freedom
from qhyvit_onnx.pipeline import as_recipe
from qhyvit_onnx.recipes import (
    RECIPES,
    Additions,
    Form,
    find_recipe,
    undeployable,
)

PUBLISHED = ["minmax", "percentile", "easyquant", "fq-vit", "ptq4vit", "repq-vit", "q-hyvit"]


def test_every_published_recipe_is_listed_and_ours_is_the_default():
    listed = [recipe.name for recipe in RECIPES.values() if recipe.listed]
    assert listed == [*PUBLISHED, "qhv"]
    assert CompileConfig().recipe == "qhv"
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    assert all(RECIPES[name].source for name in PUBLISHED)


def test_recipes_are_frozen():
    with pytest.raises(FrozenInstanceError):
        find_recipe("minmax").name = "maxmin"
    with pytest.raises(FrozenInstanceError):
        find_recipe("easyquant").method.outputs.rounds = 5
    with pytest.raises(TypeError):
        RECIPES["mine"] = find_recipe("minmax")


def test_an_unknown_recipe_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match="'maxmin' is not known; use one of minmax, percentile"):
        CompileConfig(recipe="maxmin")


def test_stages_of_the_ablation_search_more_and_more():
    stages = [RECIPES[f"q-hyvit{tail}"] for tail in (":scale", ":granularity", "")]
    searched = [stage.method.outputs.freedoms - {Freedom.HEADS} for stage in stages]
    assert searched == [set(), {Freedom.GRANULARITY}, {Freedom.GRANULARITY, Freedom.SCHEME}]
    first = stages[0].method
    for stage in stages[1:]:  # nothing else differs
        outputs = replace(stage.method.outputs, freedoms=first.outputs.freedoms)
        assert replace(stage.method, outputs=outputs) == first


def test_what_cannot_be_deployed_says_what_stands_in_the_way():
    for recipe in RECIPES.values():
        assert bool(recipe.obstacle) == (recipe.form is not Form.DEPLOYED)
    error = undeployable(find_recipe("ptq4vit"))
    assert "two steps in one tensor" in str(error)
    assert "qhv-onnx eval MODEL --recipe ptq4vit" in str(error)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_takes_none_of_our_additions(name):
    asked = Learning(samples=64, steps=100, finish=100)
    bound = as_recipe(CompileConfig(recipe=name, effort=Effort.MAX, learning=asked))
    assert (bound.folding.scope, bound.guard) == (Scope.OFF, Guard(samples=0))
    assert bound.learning == Learning(samples=0, steps=0, finish=0)  # nor corrected biases
    assert find_recipe(name).additions is Additions.NONE


def test_ours_is_what_the_config_says():
    config = CompileConfig(guard=Guard(max_noise=0.5))
    assert as_recipe(config) is config


@pytest.mark.parametrize("name", PUBLISHED[2:])
def test_what_looks_at_layers_is_refused_without_gradients(name):
    with pytest.raises(ConfigError, match=f"recipe {name} needs gradients"):
        as_recipe(CompileConfig(recipe=name, effort=Effort.FAST))


@pytest.mark.parametrize("name", PUBLISHED[:2])
def test_what_looks_at_ranges_runs_without(name):
    assert as_recipe(CompileConfig(recipe=name, effort=Effort.FAST)).effort is Effort.FAST
