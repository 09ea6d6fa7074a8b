"""Recipe -> components: each network once, with its weights, the same ones whatever was built before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from softdimo import recipe as recipes
from softdimo.build import PRODUCT, Components, assemble, locate, needs_weights, unavailable
from softdimo.errors import PluginError, RecipeError, WeightsError
from softdimo.files import save_weights
from softdimo.recipe import Recipe
from softdimo.spec import RecipeRef
from softdimo_plugins.discriminators.teacher_features import TeacherFeatures
from softdimo_plugins.features.cnn import CNN
from softdimo_plugins.teachers.compact import Compact
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("recipes")).parent


def recipe(folder: Path, *overrides: str, name: str = "teacher") -> Recipe:
    extra = ["tokenizer.weights=null", *overrides] if name == "teacher" else overrides
    return recipes.load(folder / f"{name}.yaml", extra).recipe


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


# Where weights come from


def test_weights_by_path_and_by_run_folder(tmp_path: Path) -> None:
    file = tmp_path / PRODUCT
    file.touch()
    assert locate(str(file), unavailable) == file
    assert locate(str(tmp_path), unavailable) == file
    assert locate(RecipeRef(recipe="x.yaml"), lambda ref: tmp_path / ref.recipe) == tmp_path / "x.yaml" / PRODUCT


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"])
def test_weights_in_a_folder_as_on_the_hub(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "config.json").touch()
    assert locate(str(tmp_path), unavailable) == tmp_path / name
    (tmp_path / "model.safetensors").touch()
    assert locate(str(tmp_path), unavailable) == tmp_path / "model.safetensors"
    (tmp_path / PRODUCT).touch()
    assert locate(str(tmp_path), unavailable) == tmp_path / PRODUCT


def test_absent_weights_say_what_may_stand_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights at .*absent; give a safetensors file, a run folder, or hf://"):
        locate(str(tmp_path / "absent"), unavailable)
    with pytest.raises(WeightsError, match=r"no weights at .*weights\.safetensors"):
        locate(str(tmp_path), unavailable)
    with pytest.raises(WeightsError, match=r"come from the recipe x\.yaml; run it first"):
        locate(RecipeRef(recipe="x.yaml"), unavailable)


@pytest.mark.parametrize("address", ["hf://", "hf://owner", "hf://owner/repo", "hf://owner/repo/", "hf:///repo/file"])
def test_malformed_hub_addresses_are_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a: pytest.fail("asked the hub"))
    with pytest.raises(WeightsError, match="write hf://owner/repo/path/to/file"):
        locate(address, unavailable)


def test_hub_downloads_and_their_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a: asked.append(a) or str(tmp_path / "x"))
    assert locate("hf://owner/repo/sub/model.safetensors", unavailable) == tmp_path / "x"
    assert asked == [("owner/repo", "sub/model.safetensors")]

    def offline(*address: str) -> str:
        raise OSError("no connection\nlong explanation")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(WeightsError, match=r"could not download hf://a/b/c: no connection$"):
        locate("hf://a/b/c", unavailable)


def test_names_that_the_hub_would_refuse_are_told_without_asking_it() -> None:
    with pytest.raises(WeightsError, match=r"could not download hf://-x/\.\./c"):
        locate("hf://-x/../c", unavailable)


# One object per settings


def test_equal_settings_give_one_object(folder: Path) -> None:
    parts = assemble(recipe(folder))
    assert parts.make(CNN(use="cnn", width=4)) is parts.make(CNN(use="cnn", width=4))
    assert parts.make(CNN(use="cnn", width=4)) is not parts.make(CNN(use="cnn", width=5))
    assert parts.recipe.teacher is not None
    assert parts.make(parts.recipe.teacher) is parts.teacher
    assert parts.context().teacher is parts.teacher


def test_every_term_gets_a_discriminator_of_its_own(folder: Path) -> None:
    parts = assemble(recipe(folder))
    one, two = (parts.make(TeacherFeatures(use="teacher_features", hidden=4)) for _ in range(2))
    assert not {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}
    assert all(p.requires_grad for p in one.parameters())


def test_made_networks_are_frozen_and_fresh_ones_are_not(folder: Path) -> None:
    parts = assemble(recipe(folder))
    assert parts.recipe.teacher is not None
    for net in (parts.require_teacher(), parts.require_tokenizer(), parts.make(CNN(use="cnn", width=4))):
        assert not net.training
        assert not any(p.requires_grad for p in net.parameters())
    assert all(p.requires_grad for p in parts.fresh(parts.recipe.teacher).parameters())


# Fresh weights


def test_fresh_weights_depend_on_the_seed_and_the_settings(folder: Path) -> None:
    made = [assemble(recipe(folder, f"seed={seed}")).require_teacher() for seed in (0, 0, 1)]
    assert same(made[0], made[1])
    assert not torch.equal(made[0].state_dict()["table"], made[2].state_dict()["table"])
    parts = assemble(recipe(folder))
    narrow, same_shape = (parts.make(CNN(use="cnn", width=4, dropout=d)) for d in (0.1, 0.2))
    assert not same(narrow, same_shape)


@pytest.mark.parametrize("order", [("tokenizer", "teacher", "cnn"), ("cnn", "teacher", "tokenizer")])
def test_fresh_weights_do_not_depend_on_what_was_built_before(folder: Path, order: Sequence[str]) -> None:
    alone = assemble(recipe(folder))
    expected = alone.make(CNN(use="cnn", width=4))  # builds teacher and tokenizer on its way
    parts = assemble(recipe(folder))
    torch.manual_seed(len(order[0]))  # nor on the global stream
    state = torch.get_rng_state()
    made = {}
    for name in order:
        made[name] = parts.make(CNN(use="cnn", width=4)) if name == "cnn" else getattr(parts, name)
    assert torch.equal(torch.get_rng_state(), state)  # which is left alone
    assert same(made["cnn"], expected)
    assert same(made["teacher"], alone.require_teacher())
    assert same(made["tokenizer"], alone.require_tokenizer())


# Loading


def test_weights_are_loaded_strictly(folder: Path, tmp_path: Path) -> None:
    whole = assemble(recipe(folder)).require_teacher()
    path = tmp_path / "teacher.safetensors"
    save_weights(path, {k: v + 1 for k, v in whole.state_dict().items()})
    loaded = assemble(recipe(folder, f"teacher.weights={path}")).require_teacher()
    assert torch.equal(loaded.state_dict()["table"], whole.state_dict()["table"] + 1)
    with pytest.raises(WeightsError, match=r"does not fit CompactTeacher:\n  (missing|unexpected|shape)"):
        assemble(recipe(folder, f"teacher.weights={path}", "teacher.width=32")).require_teacher()
    with pytest.raises(WeightsError, match=r"missing: blocks\.2"):
        assemble(recipe(folder, f"teacher.weights={path}", "teacher.depth=3")).require_teacher()


def test_weights_of_another_recipe_are_asked_for_when_they_are_needed(folder: Path, tmp_path: Path) -> None:
    asked: list[str] = []
    tokenizer = assemble(recipe(folder)).require_tokenizer()

    def ensure(ref: RecipeRef) -> Path:
        asked.append(Path(ref.recipe).name)
        save_weights(tmp_path / PRODUCT, tokenizer.state_dict())
        return tmp_path

    parts = Components(recipes.load(folder / "teacher.yaml").recipe, "cpu", ensure)
    assert parts.tokens is not None
    assert asked == []
    assert parts.tokenizer is parts.tokenizer
    assert asked == ["tokenizer.yaml"]


# The meta device


def test_meta_builds_without_allocation_and_without_weights(folder: Path) -> None:
    """A teacher of a hundred gigabytes and weights that nobody has: nothing is drawn, read or asked for."""
    huge = recipes.load(folder / "dimo.yaml", ["teacher.width=16384", "teacher.depth=8"]).recipe
    parts = assemble(huge, "meta")
    nets = [
        parts.require_teacher(),
        parts.require_tokenizer(),
        parts.context().copy_teacher(),
        parts.make(TeacherFeatures(use="teacher_features")),
        parts.make(CNN(use="cnn")),
    ]
    assert sum(p.numel() for p in nets[0].parameters()) > 2e10
    for net in nets:
        assert all(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    images = parts.data.source("train").get(torch.arange(2)).images
    assert images is not None
    assert images.device.type == "cpu"


# What is missing


def test_sections_that_are_missing_are_named(folder: Path) -> None:
    parts = assemble(recipe(folder, name="judge"))
    assert parts.tokens is None
    assert parts.tokenizer is None
    assert parts.teacher is None
    with pytest.raises(RecipeError, match="add a `tokenizer:` section"):
        parts.require_tokenizer()
    with pytest.raises(RecipeError, match="add a `teacher:` section"):
        parts.require_teacher()
    with pytest.raises(RecipeError, match="needs a tokenizer"):
        parts.make(Compact(use="compact"))


def test_networks_that_should_be_trained_must_name_weights() -> None:
    with pytest.raises(PluginError, match="the teacher `compact` has no `weights:`"):
        needs_weights(Compact(use="compact"), "the teacher")
    needs_weights(Compact(use="compact", weights="somewhere"), "the teacher")
    needs_weights(None, "the teacher")
