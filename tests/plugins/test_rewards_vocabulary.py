"""The vocabulary of ImageReward: its file, and what is refused."""

from __future__ import annotations

import pytest

from softdimo.errors import WeightsError
from softdimo.testing import context
from softdimo_plugins.rewards.image_reward import WORDS, ImageReward, words
from tests.plugins.reward_networks import cond, noise


def made(vocabulary):
    return context().make(ImageReward(fresh=True, tiny=True, vocabulary=vocabulary))


def test_a_vocabulary_is_read_and_another_file_is_refused(tmp_path):
    file = tmp_path / "vocab.txt"
    special = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = ["a", "red", "cat", "##s", ","]
    rest = [f"w{i}" for i in range(WORDS - len(special) - len(known))]
    file.write_text("\n".join([*special, *known, *rest]) + "\n", encoding="utf-8")
    reward = made(str(file))
    ids, mask = reward.encode(["A red CATS, x"])[0]
    found = words(str(file))
    assert [found[i] for i in ids[:8]] == ["[CLS]", "a", "red", "cat", "##s", ",", "[UNK]", "[SEP]"]
    assert mask.tolist() == [1] * 8 + [0] * 27
    assert ids[8:].tolist() == [0] * 27
    long = reward.encode(["red " * 60])[0, 0].tolist()
    assert (long[0], long[-1], len(long)) == (101, 102, 35)

    file.write_text("\n".join([*special, *known]), encoding="utf-8")
    with pytest.raises(WeightsError, match=f"is not the vocabulary of bert-base-uncased, which has {WORDS} lines"):
        made(str(file)).encode(["a"])
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(WeightsError, match="is not a vocabulary that can be read"):
        words(str(file))


def test_a_vocabulary_on_the_hub_is_fetched_when_it_is_needed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a: asked.append(a) or str(tmp_path / "none"))
    spec = ImageReward(fresh=True, tiny=True, vocabulary="hf://google-bert/bert-base-uncased/vocab.txt")
    assert spec.smoke().vocabulary is None, "a trial needs no connection"
    reward = context().make(spec)
    assert not asked
    with pytest.raises(WeightsError, match="is not a vocabulary that can be read"):
        reward(noise(1), cond("a"))
    assert asked == [("google-bert/bert-base-uncased", "vocab.txt")]
