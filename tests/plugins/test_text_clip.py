"""CLIP's text towers: words, settings, files of weights and of vocabularies."""

from __future__ import annotations

import gzip
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from softdimo.errors import PluginError, RecipeError, WeightsError
from softdimo.files import save_weights
from softdimo.kinds import Context, ImageShape
from softdimo_plugins.text_encoders import words
from softdimo_plugins.text_encoders.clip import Clip, ClipEncoder

START, END = 49406, 49407
CUBE = [START, 320, 736, 11353, 525, 320, 1746, 6987, END]
HARD = (
    "", "a red cube on a blue sphere", "  Tabs\tand\n\nlines  ", "It's we'll THEY'D don't 'S", "1234 x 5.6%",
    "!!?! ...'s", "naïve café — “quotes” 北京市 Ελλάς ΣΑΣ", "🙂👩\u200d👧 ok", "Tom &amp;amp; Jerry &lt;b&gt;",
    "schÃ¶n", "a" * 300, "cat " * 200, "under_score #tag @you http://x.y/z?a=b", "ﬁne ½ ① Ⅷ",
    "\u200bzero\u00a0width", "İstanbul ǅ ß",
)  # fmt: skip


def small(**more: object) -> ClipEncoder:
    torch.manual_seed(0)
    settings = {"width": 16, "depth": 2, "heads": 2, "fresh": True} | more
    return Clip(**settings).build(None).eval()  # type: ignore[arg-type]


def test_ids_are_those_of_the_public_tokenizers() -> None:
    zero, own = words.Words(words.bundled(), 0, "open_clip"), words.Words(words.bundled())
    ids = zero(["", "a red cube on a blue sphere"])
    assert ids.shape == (2, 77)
    assert ids.dtype == torch.int64
    assert ids[0].tolist() == [START, END] + [0] * 75
    assert ids[1].tolist() == CUBE + [0] * 68
    assert own(["a red cube on a blue sphere"])[0].tolist() == CUBE + [END] * 68
    full = zero(["cat " * 200])[0]
    assert (int(full[0]), int(full[-1])) == (START, END)
    assert (full[1:-1] == full[1]).all()


def test_ids_are_those_of_open_clip_for_any_text() -> None:
    with warnings.catch_warnings(action="ignore"):
        from open_clip.tokenizer import SimpleTokenizer
    theirs = SimpleTokenizer()
    ours = words.Words(words.bundled(), 0, "open_clip")
    assert ours.size == theirs.vocab_size
    for text in HARD:
        assert ours([text]).tolist() == theirs([text]).tolist(), text
    assert ours(HARD).tolist() == theirs(list(HARD)).tolist()


def folder(path: Path, pad: object = None, where: str = "special_tokens_map.json") -> Path:
    """A vocabulary as transformers keeps it."""
    path.mkdir()
    found = words.bundled()
    (path / "vocab.json").write_text(json.dumps(dict(found.ids)), encoding="utf-8")
    (path / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(map(" ".join, found.merges)) + "\n", encoding="utf-8"
    )
    if pad is not None:
        (path / where).write_text(json.dumps({"pad_token": pad}))
    return path


def test_ids_are_those_of_transformers_for_any_text(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(folder(tmp_path / "v"))
    ours = words.Words(words.read(tmp_path / "v"))
    for text in HARD:
        kept = theirs(text, padding="max_length", truncation=True, max_length=77)["input_ids"]
        assert ours([text])[0].tolist() == kept, text


@pytest.mark.parametrize(
    ("pad", "where", "wanted"),
    [(None, "", END), ("!", "special_tokens_map.json", 0), ({"content": "!"}, "tokenizer_config.json", 0),
     ("<|endoftext|>", "tokenizer_config.json", END)],
)  # fmt: skip
def test_a_folder_says_what_it_pads_with(tmp_path: Path, pad: object, where: str, wanted: int) -> None:
    path = folder(tmp_path / "v", pad, where)
    net = small(vocabulary=str(path))
    assert net.words(["a"])[0, 3:].unique().tolist() == [wanted]
    assert small(vocabulary=str(path), padding="zero").words(["a"])[0, 3:].unique().tolist() == [0]


def test_three_ways_of_cleaning() -> None:
    ways = {way: words.Words(words.bundled(), cleaning=way) for way in ("transformers", "ftfy", "open_clip")}
    for text, wanted in {
        "Tom &amp;amp; <b>": ("tom &amp;amp; <b>", "tom &amp;amp; <b>", "tom & <b>"),
        "Tom &amp; Jerry": ("tom &amp; jerry", "tom & jerry", "tom & jerry"),
        " schÃ¶n\n A ": ("schã¶n a", "schön a", "schön a"),
        "It’s": ("it’s", "it's", "it's"),
        "e\u0301 ΣΑΣ": ("é σασ", "é σας", "é σας"),
    }.items():
        assert tuple(words.clean(text) for words in ways.values()) == wanted


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no vocab\.json and no merges\.txt; give the folder of a CLIP tok"):
        words.read(tmp_path)
    path = folder(tmp_path / "v", "<pad>")
    with pytest.raises(WeightsError, match=r"vocab\.json has no <pad>"):
        words.read(path)
    (path / "vocab.json").write_text("{")
    with pytest.raises(WeightsError, match="holds no tokenizer that can be read"):
        words.read(path)


def test_the_content_of_a_vocabulary_counts(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", "!")
    assert Clip().content() == ""
    assert Clip(vocabulary=str(a)).content() != Clip(vocabulary=str(b)).content()
    (b / "special_tokens_map.json").unlink()
    assert Clip(vocabulary=str(a)).content() == Clip(vocabulary=str(b)).content()


def test_a_vocabulary_on_the_hub_is_fetched_file_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    path, asked = folder(tmp_path / "tokenizer", "!"), []

    def download(repo: str, name: str) -> str:
        asked.append((repo, name))
        if not (tmp_path / name).is_file():
            raise EntryNotFoundError("404")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert words.locate("hf://some/model/tokenizer") == path
    assert words.read(path).pad == "!"
    assert asked[0] == ("some/model", "tokenizer/vocab.json")
    assert len(asked) == 4
    (path / "merges.txt").unlink()
    with pytest.raises(WeightsError, match=r"could not download hf://some/model/tokenizer/merges\.txt: 404"):
        words.locate("hf://some/model/tokenizer")

    def offline(repo: str, name: str) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(WeightsError, match=r"vocab\.json: no network"):
        words.locate("hf://some/model")


def test_shapes_types_and_what_is_given(tmp_path: Path) -> None:
    found = small().encode(["a", "two birds"])
    assert {k: tuple(t.shape) for k, t in found.items()} == {"states": (2, 77, 16), "pooled": (2, 16)}
    found = small(decoder_states=True, projection=24, dtype="float16").encode(["a"])
    assert {k: tuple(t.shape) for k, t in found.items()} == {
        "states": (1, 77, 16), "pooled": (1, 24), "decoder_states": (1, 77, 16)}  # fmt: skip
    assert {t.dtype for t in found.values()} == {torch.float16}
    norm = small(decoder_states=True).encode(["a"])["decoder_states"]
    assert torch.allclose(norm.mean(-1), torch.zeros(1, 77), atol=1e-5)


def test_padding_and_activation_matter() -> None:
    base = small().encode(["a cat"])["states"]
    zero = small(padding="zero").encode(["a cat"])["states"]
    assert torch.allclose(base[:, :4], zero[:, :4], atol=1e-6)  # the past does not know what comes
    assert not torch.allclose(base[:, 4:], zero[:, 4:], atol=1e-3)
    assert not torch.allclose(base, small(activation="quick_gelu").encode(["a cat"])["states"], atol=1e-6)


def test_weights_of_open_clip_and_transformers_are_the_same_network(tmp_path: Path) -> None:
    from softdimo_plugins.text_encoders.clip import INNER, OUTER

    spec = Clip(width=16, depth=2, heads=2, fresh=True)
    net = small()
    hf = {key.removeprefix("net."): t for key, t in net.state_dict().items()}
    theirs = {name: hf[ours] for name, ours in OUTER.items()} | {"text_projection": hf["text_projection.weight"].T}
    for i in range(2):
        old, new = f"transformer.resblocks.{i}.", f"text_model.encoder.layers.{i}."
        for kind in ("weight", "bias"):
            theirs |= {f"{old}{a}{kind}": hf[f"{new}{b}{kind}"] for a, b in INNER}
            parts = [hf[f"{new}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            theirs[f"{old}attn.in_proj_{kind}"] = torch.cat(parts)
    for name, state in {
        "hf.bin": hf | {"text_model.embeddings.position_ids": torch.arange(77)[None], "logit_scale": torch.ones(())},
        "whole_clip.bin": hf | {"vision_model.x": torch.ones(2), "visual_projection.weight": torch.ones(2)},
        "open_clip.bin": theirs | {"visual.proj": torch.ones(2)},
        "training.pt": {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in theirs.items()}},
        "half.bin": {k: v.half() for k, v in theirs.items()},
    }.items():
        torch.save(state, tmp_path / name)
        torch.manual_seed(1)
        other = spec.build(None).eval()  # type: ignore[arg-type]
        spec.load_weights(other, tmp_path / name)
        close = 1e-2 if name == "half.bin" else 0
        a, b = (n.encode(["a red cube"])["pooled"] for n in (net, other))
        assert torch.allclose(a, b, atol=close, rtol=0), name
    save_weights(tmp_path / "ours.safetensors", net.state_dict())
    spec.load_weights(other, tmp_path / "ours.safetensors")
    assert load_file(tmp_path / "ours.safetensors").keys() == net.state_dict().keys()


def test_what_is_wrong_with_a_file_is_named(tmp_path: Path) -> None:
    spec, net = Clip(width=16, depth=2, heads=2, fresh=True), small()
    state = {key.removeprefix("net."): t for key, t in net.state_dict().items()}
    path = tmp_path / "w.bin"

    def refused(content: dict[str, torch.Tensor], what: str) -> None:
        torch.save(content, path)
        with pytest.raises(WeightsError, match=what):
            spec.load_weights(net, path)

    refused(
        {k: v for k, v in state.items() if "fc2.bias" not in k}, r"missing: net\.text_model\.encoder\.layers\.0\.mlp"
    )
    refused(state | {"extra": torch.ones(1)}, "unexpected: extra")
    refused({"conv.weight": torch.ones(1)}, "another model, not a CLIP text tower")
    torch.save({k.removeprefix("net."): t for k, t in small(width=24, depth=3, heads=3).state_dict().items()}, path)
    with pytest.raises(WeightsError, match=r"with width: 24, depth: 3, projection: 24; the recipe says width: 16"):
        spec.load_weights(net, path)


def test_heads_that_the_weights_do_not_show_are_checked_at_public_sizes(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match="Change it to heads: 12"):
        Clip(width=768, depth=12, heads=16).load_weights(torch.nn.Linear(1, 1), tmp_path / "w.bin")


def test_it_wants_weights_that_fit_heads_and_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match="the text encoder `clip` needs its public weights"):
        Clip().build(None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="heads: 3 does not divide width: 16"):
        small(heads=3)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PluginError, match=r"pip install 'softdimo\[text\]'"):
        small()
    words.bundled.cache_clear()
    monkeypatch.setattr(words, "find_spec", lambda name: None)
    with pytest.raises(PluginError, match=r"comes with open-clip-torch: run `pip install 'softdimo\[text\]'`"):
        small()
    words.bundled.cache_clear()


def test_a_damaged_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / words.BUNDLED).write_bytes(gzip.compress(b"x")[:-3])
    found = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(words, "find_spec", lambda name: found)
    words.bundled.cache_clear()
    with pytest.raises(PluginError, match=r"cannot be read .* install open-clip-torch anew"):
        words.bundled()
    words.bundled.cache_clear()


def test_nothing_is_fetched_for_a_network_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "locate", lambda address: pytest.fail("asked the hub"))
    blank = Context(ImageShape(1, 1, 1), (), print, device=torch.device("meta"))
    with torch.device("meta"):
        net = Clip(width=16, depth=2, heads=2, fresh=True, vocabulary="hf://a/b").build(blank)
    assert net.encode(["a"])["states"].shape == (1, 77, 16)


def test_a_tiny_version_has_two_blocks_of_the_same_width_and_no_file() -> None:
    tiny = Clip(weights="big.safetensors", dtype="float16").smoke()
    assert (tiny.depth, tiny.width, tiny.heads, tiny.weights, tiny.fresh) == (2, 1024, 16, None, True)
    assert tiny.dtype == "float16"
    assert Clip(vocabulary="hf://a/b").smoke().vocabulary is None
    assert Clip(vocabulary="there").smoke().vocabulary == "there"
