"""Who may judge: no network that took part in training, wherever it hides."""

import dataclasses

import pytest
import torch

from softdimo.errors import RecipeError
from softdimo.evaluate import Pieces, Subject, evaluate, network_digests, table
from softdimo.math.digest import digest_module
from softdimo.math.init import Init
from softdimo_plugins.metrics.accuracy import AccuracyMetric
from softdimo_plugins.samplers.one_step import OneStep
from tests.helpers import Blobs, CountingTeacher, Painter, Pooled


@pytest.mark.parametrize("part", ["reward", "discriminator"])
def test_a_network_that_took_part_in_training_may_not_judge(tmp_path, part):
    class Reward:
        differentiable = True

        def __init__(self, network):
            self.network = network

    class Critic(torch.nn.Module):
        def __init__(self, trunk):
            super().__init__()
            self.head = torch.nn.Linear(2, 1)
            self.trunk = (trunk,)  # frozen, so not registered

    copy = Pooled(2)  # the judge's weights in another module
    player = Reward(copy) if part == "reward" else Critic(copy)
    forbidden = network_digests({part: player})
    path = tmp_path / "eval.json"
    pieces = Pieces(Blobs(), lambda: {"accuracy": AccuracyMetric(Pooled(2))}, [], forbidden=forbidden)
    with pytest.raises(RecipeError, match=f"`accuracy` judges with the network that training used as {part}"):
        evaluate(pieces, path, samples=6, seeds=(0,))
    assert not path.exists()
    honest = network_digests({part: Reward(Pooled(3))})
    assert honest
    evaluate(dataclasses.replace(pieces, forbidden=honest), path, samples=6, seeds=(0,))


def test_digests_find_networks_wherever_they_are():
    a, b = Pooled(1), Pooled(2)

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = a

    found = network_digests({"x": {"list": [Outer()], "again": a}, "y": b, "none": OneStep()})
    assert digest_module(a) in found.values()
    assert found["y"] == digest_module(b)
    assert set(found) == {"x", "x (2)", "y"}
    looped = type("Loop", (), {})()
    looped.me, looped.net = looped, b
    assert network_digests({"loop": looped}) == {"loop": digest_module(b)}


def test_digests_depend_on_names_shapes_types_and_values_only():
    net = torch.nn.Linear(2, 3)
    same = torch.nn.Linear(2, 3)
    same.load_state_dict(net.state_dict())
    assert digest_module(net) == digest_module(same)
    assert digest_module(net) != digest_module(same.double())
    with torch.no_grad():
        net.bias[0] += 1e-6
    assert digest_module(net) != digest_module(same.float())
    assert digest_module(torch.nn.BatchNorm1d(2)) != digest_module(torch.nn.BatchNorm1d(3))


def test_a_network_is_hashed_once_for_all_rows(tmp_path, monkeypatch):
    hashed, tokenizer, nets = [], Painter(), [CountingTeacher(), CountingTeacher()]
    monkeypatch.setattr(table, "digest_module", lambda net: hashed.append(net) or digest_module(net))
    sampled = [(nets[0], 1.0), (nets[0], 2.0), (nets[1], 1.0)]
    rows = [Subject(f"{i}", "student", n, OneStep(init=Init(), temperature=t)) for i, (n, t) in enumerate(sampled)]
    pieces = Pieces(Blobs(), lambda: {"accuracy": AccuracyMetric(Pooled())}, rows, tokenizer=tokenizer)
    found = evaluate(pieces, tmp_path / "eval.json", samples=6, seeds=(0,), real=False)["rows"]
    assert hashed == [nets[0], tokenizer, nets[1]]
    assert [row["key"] == found[0]["key"] for row in found] == [True, False, True]
