"""What a search optimizes: one reward as it is, several in standard deviations, with or without remembering."""

import pytest
import torch

from softdimo.errors import PluginError
from softdimo.kinds import Cond
from softdimo.math.best import evaluate
from softdimo.math.init import Init
from softdimo.math.rollout import start
from softdimo.search.scoring import Scores, Weighted, decoded, decoder, look
from softdimo_plugins.search.tteo import TTEO
from tests.helpers import CountingTeacher, Painter, labels, rng


class Bright:
    """Mean brightness of the left half, more for higher labels; needs 3 channels."""

    differentiable = True

    def __call__(self, img, cond):
        assert img.shape[1] == 3
        return img[..., :3].mean((1, 2, 3)) * (1 + cond.labels)


class Right:
    """Share of bright pixels at the right, times 100."""

    differentiable = False

    def __call__(self, img, cond):
        return 100 * (img[..., 3:] > 0.5).float().mean((1, 2, 3))


class Deep:
    """A reward that keeps much for its backward pass, and counts its calls."""

    differentiable = True

    def __init__(self):
        self.calls = 0

    def __call__(self, img, cond):
        self.calls += 1
        for _ in range(8):
            img = torch.tanh(img * 1.1)
        return img.mean((1, 2, 3))


class Constant:
    differentiable = True

    def __call__(self, img, cond):
        return 0 * img.mean((1, 2, 3)) + 3


BOTH = [Weighted("bright", Bright()), Weighted("right", Right(), 0.5)]


def student():
    net, tokenizer = CountingTeacher(strength=2.0), Painter()
    return net, tokenizer, lambda cond, r: start(net, cond, Init(), r)[1]


def test_one_reward_is_the_score():
    img, cond = torch.rand(4, 1, 4, 6, generator=rng()), labels(4)
    one = Scores([Weighted("bright", Bright())], pool=8)
    value, rewards = one.each(img, cond)
    assert torch.equal(value, Bright()(img.expand(-1, 3, -1, -1), cond))
    assert rewards == {}
    assert (one.several, one.calibration, one.differentiable) == ((), 0, True)
    assert torch.equal(Scores([Weighted("bright", Bright(), 2.0)])(img, cond), 2 * value)
    net, tokenizer, begin = student()
    assert one.calibrated(decoder(net, tokenizer, "argmax"), begin, cond, rng()) is cond
    assert net.rows == 0, "one reward needs no calibration, so it costs none"


def test_without_a_pool_rewards_are_summed_as_they_are():
    img, cond = torch.rand(4, 3, 4, 6, generator=rng()), labels(4)
    value, rewards = Scores(BOTH).each(img, cond)
    assert torch.allclose(value, Bright()(img, cond) + 0.5 * Right()(img, cond))
    assert list(rewards) == ["bright", "right"]
    assert torch.equal(rewards["right"], Right()(img, cond)), "told as it is, without its weight"
    assert Scores(BOTH).calibration == 0
    assert Scores(BOTH).differentiable is False


@pytest.mark.parametrize("rows", [None, 1, 4])
def test_several_rewards_are_measured_in_deviations_over_a_pool_of_the_same_condition(rows):
    net, tokenizer, begin = student()
    generator, score = decoder(net, tokenizer, "argmax"), Scores(BOTH, pool=6)
    cond = score.calibrated(generator, begin, labels(3), rng(), rows)
    assert net.rows == 6 * 3 == score.calibration * 3
    again = rng()
    pool = [decoded(generator, begin(labels(3), again), labels(3)) for _ in range(6)]
    img = torch.rand(3, 1, 4, 6, generator=rng(3))
    wide = img.expand(-1, 3, -1, -1)
    expected = 0
    for reward, weight in ((Bright(), 1.0), (Right(), 0.5)):
        over = torch.stack([reward(p.expand(-1, 3, -1, -1), labels(3)) for p in pool])
        sd = over.std(0)
        expected = expected + weight * (reward(wide, labels(3)) - over.mean(0)) / torch.where(sd > 0, sd, 1.0)
    assert torch.allclose(score(img, cond), expected, atol=1e-4)
    units = list(score.statistics(cond))
    assert len(units) == 3
    assert set(units[0]) == {"bright", "right"}
    assert units[1]["bright"]["sd"] > 0


def test_statistics_follow_their_conditions():
    """Through a search that repeats, picks and orders conditions as it likes."""
    net, tokenizer, begin = student()
    score = Scores(BOTH, pool=6)
    cond = score.calibrated(decoder(net, tokenizer, "argmax"), begin, labels(3), rng())
    img = torch.rand(3, 1, 4, 6, generator=rng(3))
    value, order = score(img, cond), torch.tensor([2, 0, 1, 2])
    assert torch.equal(score(img[order], cond[order]), value[order])
    assert torch.equal(score(img.repeat(2, 1, 1, 1), Cond.cat([cond, cond])), value.repeat(2))


def test_a_reward_that_never_varies_keeps_its_own_unit():
    net, tokenizer, begin = student()
    score = Scores([Weighted("bright", Bright()), Weighted("constant", Constant())], pool=5)
    cond = score.calibrated(decoder(net, tokenizer, "argmax"), begin, labels(3), rng())
    assert all(each["constant"] == {"mean": 3.0, "sd": 1.0} for each in score.statistics(cond))
    assert score(torch.rand(3, 1, 4, 6), cond).isfinite().all()


@pytest.mark.parametrize("decode", ["argmax", "soft"])
def test_recomputing_changes_memory_and_nothing_else(decode):
    net, tokenizer, begin = student()
    e, cond = begin(labels(3), rng()), labels(3)

    def climb(recompute):
        reward, kept = Deep(), []
        score = Scores([Weighted("deep", reward)], recompute=recompute)
        generator = decoder(net, tokenizer, decode, recompute)

        def count(t):
            kept.append(t.numel())
            return t

        rows = net.rows
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            points = evaluate(generator, score, e, cond, gradient=True)
        return points, sum(kept), reward.calls, net.rows - rows

    plain, again = climb(False), climb(True)
    assert torch.equal(plain[0].score, again[0].score)
    assert torch.equal(plain[0].gradient, again[0].gradient)
    assert again[1] < 0.7 * plain[1], "less is kept for the backward pass"
    assert (plain[2], again[2]) == (1, 2), "the reward runs a second time"
    assert plain[3] == again[3] == 3, "the student does not"
    assert float(plain[0].gradient.abs().max()) > 0


def test_recomputing_is_for_gradients_only():
    net, tokenizer, begin = student()
    reward = Deep()
    score = Scores([Weighted("deep", reward)], recompute=True)
    evaluate(decoder(net, tokenizer, "argmax", True), score, begin(labels(3), rng()), labels(3))
    assert reward.calls == 1


def test_a_sum_with_a_reward_without_gradient_cannot_guide():
    net, tokenizer, begin = student()
    with pytest.raises(PluginError, match="not differentiable"):
        TTEO(unit=0.3).run(decoder(net, tokenizer, "argmax"), Scores(BOTH, pool=3), begin, labels(3), rng())


@pytest.mark.parametrize("rows", [None, 1, 2, 50])
def test_looking_at_images_a_few_at_a_time(rows):
    img, cond = torch.rand(5, 1, 4, 6, generator=rng()), labels(5)
    seen = look(img, cond, Scores(BOTH), {"deep": Deep()}, rows)
    whole = look(img, cond, Scores(BOTH), {"deep": Deep()})
    assert torch.allclose(seen.score, whole.score)
    row = seen.row(3)
    assert row["score"] == pytest.approx(row["rewards"]["bright"] + 0.5 * row["rewards"]["right"])
    assert set(row["held_out"]) == {"deep"}
    seen.held_out["deep"][3] = float("nan")
    assert seen.row(3)["held_out"]["deep"] is None
