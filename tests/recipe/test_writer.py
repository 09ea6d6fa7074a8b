"""Writing a recipe back, hashing its content, making it small."""

from __future__ import annotations

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from softdimo.memory import sizes
from softdimo.recipe import Recipe, content_hash, distributions, dump, load, load_ref, settings_hash, smoke
from tests.recipe.toy import STUDENT, Data, Sampler, Search, Teacher, Tokenizer


@pytest.fixture
def read(tmp_path):
    def read(text=STUDENT, *overrides, **options):
        (tmp_path / "r.yaml").write_text(text)
        return load(tmp_path / "r.yaml", overrides, **options).recipe

    return read


def test_dump_loads_back_to_an_equal_recipe_from_anywhere(read, tmp_path):
    recipe = read(STUDENT, "title='1e-5'", "teacher.weights=hf://a/b/c", "tokenizer.weights=w.safetensors")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/recipe.yaml").write_text(dump(recipe))
    again = load(tmp_path / "elsewhere")
    assert again.recipe == recipe
    assert dump(again.recipe) == dump(recipe)
    assert type(again.recipe.train.terms[1].discriminator) is type(recipe.train.terms[1].discriminator)


def test_dump_writes_every_default(read):
    plain = yaml.safe_load(dump(read()))
    assert plain["train"]["player"]["optimizer"]["betas"] == [0.9, 0.999]
    assert plain["train"]["start"]["from"] is None
    assert plain["train"]["terms"][1]["discriminator"] == {"use": "toy_discriminator", "weights": None, "blocks": [0]}


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), ANY, max_size=4),
)
def test_whatever_a_recipe_holds_survives_writing_and_reading(tmp_path_factory, title, notes):
    """Text that looks like a number, YAML's special characters, other scripts, deep values."""
    recipe = Recipe.model_validate(
        {
            "title": title,
            "data": {"use": "toy_data"},
            "tokenizer": {"use": "toy_tokenizer"},
            "teacher": {"use": "toy_teacher", "notes": notes},
        }
    )
    file = tmp_path_factory.mktemp("d") / "r.yaml"
    file.write_text(dump(recipe), encoding="utf-8")
    assert load(file).recipe == recipe


def test_recipes_made_in_python():
    spec = Teacher(use="toy_teacher", width=4)
    recipe = Recipe(title="t", data=Data(use="toy_data"), tokenizer=Tokenizer(use="toy_tokenizer"), teacher=spec)
    assert recipe.teacher is spec
    assert yaml.safe_load(dump(recipe))["teacher"]["width"] == 4


def test_distributions(read):
    assert distributions(read()) == ["toy"]


SAME = ["title=Other", "hardware.threads=3", "hardware.devices=2", "train.log_every=7", "train.sample_every=7",
        "train.checkpoint_minutes=9", "train.keep_checkpoints=9"]  # fmt: skip
OTHER = ["seed=1", "train.iterations=11", "hardware.precision=bf16-mixed", "teacher.heads=4", "eval.samples=3",
         "train.terms.0.weight=2", "search.conditions=3"]  # fmt: skip


def test_hash_follows_what_results_depend_on(read):
    mine = content_hash(read())
    assert [content_hash(read(STUDENT, o)) == mine for o in SAME] == [True] * len(SAME)
    others = [content_hash(read(STUDENT, o)) for o in OTHER]
    assert len({mine, *others}) == len(OTHER) + 1


def test_hash_of_settings_follows_recipes_by_content(read, tmp_path):
    other = STUDENT.replace("  iterations", "  network: teacher\n  iterations")
    (tmp_path / "a.yaml").write_text(other[: other.index("  terms:")])
    (tmp_path / "b.yaml").write_text("base: a.yaml\ntitle: same content\n")
    (tmp_path / "c.yaml").write_text("base: a.yaml\nseed: 5\n")
    judged = "search.score={use: toy_reward, judge: {recipe: %s.yaml}}"
    a, b, c = (settings_hash(read(STUDENT, judged % f"{tmp_path}/{n}").search) for n in "abc")
    assert a == b
    assert len({a, c, settings_hash(read().search)}) == 3


def test_several_rewards_are_written_as_a_list(read, tmp_path):
    several = "search.score=[{reward: {use: toy_reward}}, {name: other, weight: 2, reward: {use: toy_reward}}]"
    recipe = read(STUDENT, several)
    assert [(r.name, r.weight) for r in recipe.search.rewards()] == [("toy_reward", 1), ("other", 2)]
    assert [(r.name, r.weight) for r in read().search.rewards()] == [("toy_reward", 1)]
    (tmp_path / "elsewhere.yaml").write_text(dump(recipe))
    assert load(tmp_path / "elsewhere.yaml").recipe == recipe


def test_hash_is_stable():
    """The same in every process and release that does not change the recipe's meaning."""
    recipe = Recipe.model_validate({"title": "t", "data": {"use": "toy_data"}})
    assert content_hash(recipe) == content_hash(recipe.model_copy(update={"title": "u"}))
    assert len(content_hash(recipe)) == 64


def test_hash_follows_files_that_the_user_can_change(read, monkeypatch):
    recipe = read()
    mine, read_by = content_hash(recipe), type(recipe.data)
    monkeypatch.setattr(read_by, "content", lambda self: "")
    assert content_hash(recipe) == mine
    monkeypatch.setattr(read_by, "content", lambda self: "1")
    one = content_hash(recipe)
    monkeypatch.setattr(read_by, "content", lambda self: "2")
    assert len({mine, one, content_hash(recipe)}) == 3


def test_hash_includes_the_recipes_referred_to_by_content(read, tmp_path):
    other = STUDENT.replace("  iterations", "  network: teacher\n  iterations")
    other = other[: other.index("  terms:")]
    text = STUDENT.replace("  width: 8", "  weights: {recipe: NAME}")
    (tmp_path / "a.yaml").write_text(other)
    (tmp_path / "b.yaml").write_text("base: a.yaml\ntitle: same content, another file\n")
    (tmp_path / "c.yaml").write_text("base: a.yaml\nseed: 5\n")
    a, b, c = (content_hash(read(text.replace("NAME", f"{n}.yaml"))) for n in "abc")
    assert a == b
    assert a != c
    recipe = read(text.replace("NAME", "a.yaml"))
    assert content_hash(recipe, smoke=True) != content_hash(recipe)


@pytest.mark.parametrize("title", ["\U0001f600", "a\x85b\u2028c", "1e-5", "tab\t", "'\"\\ud83d"])
def test_overrides_in_references(read, tmp_path, title):
    other = STUDENT.replace("  iterations", "  network: teacher\n  iterations")
    (tmp_path / "a.yaml").write_text(other[: other.index("  terms:")])
    recipe = read(STUDENT.replace("  width: 8", "  weights: {recipe: a.yaml, set: {data.folder: ./here, seed: 9}}"))
    ref = recipe.teacher.weights
    assert load_ref(ref).recipe.data.folder == str(tmp_path / "here")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/recipe.yaml").write_text(dump(recipe))
    assert load(tmp_path / "elsewhere").recipe == recipe
    assert load_ref(ref.model_copy(update={"set": {"title": title}})).recipe.title == title


def test_smoke_is_small_and_valid(read, tmp_path):
    loaded = load(_file(tmp_path), smoke=True)
    recipe = loaded.recipe
    assert loaded.smoke
    assert (recipe.train.iterations, recipe.train.batch_size, recipe.eval.seeds) == (2, 2, (0, 1))
    assert (recipe.eval.samples, recipe.eval.reference) == (4, 8)
    assert recipe.eval.batch_size <= recipe.eval.samples
    assert recipe.search.conditions == recipe.search.batch_size == 2
    assert recipe.search.pool == 4
    assert [t.player.accumulate for t in recipe.train.terms] == [1, 1]
    assert recipe.eval.rows[1].sampler == Sampler(use="toy_sampler", steps=1)
    assert recipe.teacher == Teacher(use="toy_teacher", width=2)
    assert recipe.search.methods[0].search == Search(use="toy_search")
    assert smoke(recipe) == recipe
    assert Recipe.model_validate(recipe.model_dump(by_alias=True)) == recipe


def _file(folder):
    (folder / "s.yaml").write_text(STUDENT)
    return folder / "s.yaml"


def test_smoke_leaves_what_is_small_already(read):
    text = "title: t\ndata: {use: toy_data}\n"
    assert read(text, smoke=True) == read(text)


@pytest.mark.parametrize("slow", [True, False])
def test_smoke_is_quick_without_instructions_for_bf16(read, monkeypatch, slow):
    monkeypatch.setattr("softdimo.recipe.shrink.slow_in_bf16", lambda accelerator: slow)
    for asked, wanted in (("bf16-mixed", "32-true"), ("bf16-true", "32-true"), ("64-true", "64-true")):
        text = f"title: t\ndata: {{use: toy_data}}\nhardware: {{precision: {asked}}}\n"
        assert read(text, smoke=True).hardware.precision == (wanted if slow else asked)
        assert read(text).hardware.precision == asked


def test_which_processors_are_slow_in_bf16(monkeypatch):
    for kernels in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda kernels=kernels: kernels)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert sizes.slow_in_bf16("auto") == sizes.slow_in_bf16("cpu") == (not kernels)
        assert not sizes.slow_in_bf16("cuda")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert not sizes.slow_in_bf16("auto")
        assert sizes.slow_in_bf16("cpu") == (not kernels)
