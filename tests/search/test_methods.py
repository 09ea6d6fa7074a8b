"""Searches side by side: paired, priced, judged on what the user gets."""

import json

import pytest
import torch
from PIL import Image

from softdimo.errors import PluginError
from softdimo.math.init import Init
from softdimo.search.methods import SearchPieces, _paired, search
from softdimo.search.scoring import Scores, Weighted, decoder
from softdimo_plugins.search.best_of_n import BestOfN
from softdimo_plugins.search.tteo import TTEO
from tests.helpers import Blobs, CountingTeacher, Painter, labels, rng
from tests.search.test_scoring import Bright, Right


def one(reward):
    return Scores([Weighted("the reward", reward)])


def pieces(methods, **changes):
    made = {
        "net": CountingTeacher(strength=2.0), "tokenizer": Painter(), "init": Init(), "data": Blobs(),
        "score": one(Bright()), "methods": methods, "held_out": {"right": Right()},
    }  # fmt: skip
    return SearchPieces(**(made | changes))


def tteo(**changes):
    return TTEO(**({"starts": 2, "iterations": 3, "unit": 0.3, "lr": 0.3} | changes))


def run(folder, methods, conditions=20, batch_size=8, **changes):
    seed = changes.pop("seed", 0)
    result = search(pieces(methods, **changes), folder, conditions=conditions, batch_size=batch_size, seed=seed)
    return result, {row["name"]: row for row in result["methods"]}


def timeless(result):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result["methods"]]


def test_rows_and_their_prices(tmp_path):
    result, rows = run(tmp_path, {"tteo": tteo(), "best of 4": BestOfN(n=4)})
    assert json.loads((tmp_path / "search.json").read_text()) == result
    assert list(rows) == ["one step, sampled", "one step, argmax", "tteo", "best of 20, argmax", "best of 4"]
    assert [row["passes"] for row in rows.values()] == [1, 1, 20, 20, 4]
    assert result["conditions"] == 20
    for row in rows.values():
        assert set(row["held_out"]) == {"right"}
        assert row["seconds"] > 0
        assert row["score_sem"] > 0


def test_a_trial_takes_few_passes():
    assert tteo(starts=4, iterations=4, candidates=39).smoke().passes() == 3 + 2 * 4
    assert tteo(starts=1, iterations=0, candidates=2).smoke().passes() == 2 + 1
    assert [BestOfN(n=n).smoke().n for n in (1, 64)] == [1, 4]


def test_a_method_at_equal_cost_in_the_recipe_is_not_repeated(tmp_path):
    _, rows = run(tmp_path, {"tteo": tteo(), "mine": BestOfN(n=20), "more": tteo(lr=0.1)})
    assert list(rows) == ["one step, sampled", "one step, argmax", "tteo", "mine", "more"]


def test_more_compute_cannot_be_worse_and_gains_are_paired(tmp_path):
    _, rows = run(tmp_path, {f"{n}": BestOfN(n=n) for n in (1, 2, 8)} | {"tteo": tteo()})
    scores = [rows[name]["score_mean"] for name in ("one step, argmax", "1", "2", "8")]
    assert scores[0] == pytest.approx(scores[1])
    assert scores[1] < scores[2] < scores[3]
    assert rows["1"]["gain_mean"] == pytest.approx(0)
    assert rows["8"]["gain_mean"] == pytest.approx(scores[3] - scores[0])
    assert rows["8"]["gain_sem"] < rows["8"]["score_sem"] * 2
    assert rows["tteo"]["score_mean"] >= rows["2"]["score_mean"] - 1e-6, "its two starts are those of best-of-2"


def test_differences_at_equal_cost_are_paired(tmp_path):
    """With best-of-N that the recipe has and with one that it has not."""
    _, rows = run(tmp_path, {"tteo": tteo(), "mine": BestOfN(n=20), "short": tteo(iterations=1)}, batch_size=20)
    for name, rival in (("tteo", "mine"), ("short", "best of 8, argmax")):
        against = rows[name]["against"]
        assert against["name"] == rival
        for key, mine, theirs in (
            ("score", rows[name]["score_mean"], rows[rival]["score_mean"]),
            ("right", rows[name]["held_out"]["right"], rows[rival]["held_out"]["right"]),
        ):
            found = (against | against["held_out"])[key]
            assert found["mean"] == pytest.approx(mine - theirs, abs=1e-6)
            assert 0 <= found["higher"] <= found["higher"] + found["lower"] <= 20
            assert (found["sem"] > 0) == (found["higher"] + found["lower"] > 0)
    assert [name for name, row in rows.items() if "against" in row] == ["tteo", "short"]
    _, worse = run(tmp_path, {"long": tteo(iterations=1), "far": tteo(iterations=1, lr=1e-9)}, batch_size=20)
    still = worse["far"]["against"]["score"]
    assert still["lower"] > still["higher"] == 0, "two starts that stay where they are lose to eight"
    found = _paired(torch.tensor([1.0, -1.0, 0.0, 4.0]))
    assert (found["mean"], found["higher"], found["lower"]) == (1.0, 2, 1)
    assert found["sem"] == pytest.approx((14 / 3) ** 0.5 / 2)


def test_the_trace_is_the_best_so_far_and_ends_at_the_score(tmp_path):
    _, rows = run(tmp_path, {"tteo": tteo(), "eight": BestOfN(n=8)})
    trace = torch.tensor(rows["tteo"]["trace"])
    assert trace.shape == (2, 4)
    assert (trace.diff(dim=0) >= 0).all()
    assert (trace.diff(dim=1) >= 0).all()
    assert float(trace[-1, -1]) == pytest.approx(rows["tteo"]["score_mean"], abs=1e-5)
    assert float(trace[0, 0]) == pytest.approx(rows["one step, argmax"]["score_mean"], abs=1e-5)
    assert rows["tteo"]["trace_passes"] == [[1, 4, 7, 10], [2, 8, 14, 20]]
    _, rows = run(tmp_path, {"screened": tteo(candidates=7), "eight": BestOfN(n=8)})
    assert rows["screened"]["trace_passes"] == [[8, 11, 14, 17], [9, 15, 21, 27]]
    assert rows["screened"]["passes"] == 27
    assert torch.tensor(rows["eight"]["trace"]).shape == (8, 1)
    assert rows["eight"]["trace_passes"] == [[n] for n in range(1, 9)]


def test_passes_are_the_rows_that_the_network_sees(tmp_path):
    net = CountingTeacher()
    backward = []
    forward = net.forward

    def counted(e, cond, **kw):
        if e.requires_grad:
            e.register_hook(lambda g: backward.append(len(g)))
        return forward(e, cond, **kw)

    net.forward = counted
    seen = {}
    state = {"rows": 0, "back": 0}

    def progress(what, done, total):
        seen[what] = (net.rows - state["rows"], sum(backward) - state["back"])
        if done == total:
            state.update(rows=net.rows, back=sum(backward))

    made = pieces({"tteo": tteo(), "four": BestOfN(n=4)}, net=net)
    result = search(made, tmp_path, conditions=20, batch_size=20, progress=progress)
    for row in result["methods"]:
        rows, back = seen[row["name"]]
        delivered = 0 if row["name"] == "one step, sampled" else 20  # decoding what was found, once
        if row["name"] == "four":
            delivered += 4 * 8  # the path, for the picture of the method before
        assert rows + 2 * back - delivered == 20 * row["passes"], row["name"]


def test_the_score_is_that_of_the_delivered_image(tmp_path):
    """Recomputed by hand for one batch, for both decodes."""
    for decode in ("argmax", "soft"):
        made = pieces({"m": tteo(decode=decode)})
        result = search(made, tmp_path / decode, conditions=6, batch_size=6)
        row = next(r for r in result["methods"] if r["name"] == "m")
        assert row["decode"] == decode
        generator = decoder(made.net, made.tokenizer, decode)
        compare = search(made, tmp_path / "again", conditions=6, batch_size=6)
        assert timeless(result) == timeless(compare)
        assert row["score_mean"] == pytest.approx(row["trace"][-1][-1], abs=1e-5)
        assert generator(torch.zeros(6, 6, 8), labels(6)).shape == (6, 1, 4, 6)


def test_argmax_decode_shows_tokens_and_passes_the_soft_gradient():
    net, tokenizer = CountingTeacher(), Painter()
    hard, soft = decoder(net, tokenizer, "argmax"), decoder(net, tokenizer, "soft")
    e = torch.randn(4, 6, 8, generator=rng())
    with torch.no_grad():
        logits = net(e, labels(4)).logits
        assert torch.equal(hard(e, labels(4)), tokenizer.decode(logits.argmax(-1)))
        assert torch.equal(soft(e, labels(4)), tokenizer.decode_soft(logits.softmax(-1)))
    e.requires_grad_(True)
    assert torch.allclose(hard(e, labels(4)), tokenizer.decode(logits.argmax(-1)), atol=1e-6)
    paint = tokenizer.paint.detach()

    def slope(images, before):
        """Gradient of the summed decoder output before its sigmoid."""
        return torch.autograd.grad((images * (1 / (before * (1 - before))).detach()).sum(), e)[0]

    a, b = hard(e, labels(4)), soft(e, labels(4))
    assert paint.shape == (60, 24)
    assert torch.allclose(slope(a, a), slope(b, b), atol=1e-5)


def test_a_picture_shows_start_iterations_and_winner(tmp_path):
    result, rows = run(tmp_path, {"my tteo/2": tteo(), "eight": BestOfN(n=8)})
    assert list(result["pictures"]) == ["my tteo/2"]
    with Image.open(tmp_path / result["pictures"]["my tteo/2"]) as picture:
        wide, high = picture.size
    assert wide > 5 * 84
    assert high > 6 * 84
    assert "my tteo/2" in rows


def test_the_same_again_and_another_seed(tmp_path):
    methods = {"tteo": tteo()}
    a, b, c = (run(tmp_path, methods, seed=seed)[0] for seed in (0, 0, 1))
    assert timeless(a) == timeless(b)
    assert timeless(a) != timeless(c)


def test_a_score_without_gradient_suits_best_of_n_only(tmp_path):
    _, rows = run(tmp_path, {"eight": BestOfN(n=8)}, score=one(Right()))
    assert rows["eight"]["score_mean"] > rows["one step, argmax"]["score_mean"]
    with pytest.raises(PluginError, match="not differentiable"):
        run(tmp_path, {"tteo": tteo()}, score=one(Right()))


def both(pool=4):
    return Scores([Weighted("left", Bright()), Weighted("all", All(), 2.0)], pool)


class All:
    """Mean brightness, in a unit of its own."""

    differentiable = True

    def __call__(self, img, cond):
        return 1000 * img.mean((1, 2, 3))


def test_several_rewards_pay_for_their_units(tmp_path):
    result, rows = run(tmp_path, {"tteo": tteo(), "best of 4": BestOfN(n=4)}, score=both())
    assert list(rows) == ["one step, sampled", "one step, argmax", "tteo", "best of 20, argmax", "best of 4"]
    assert [row["passes"] for row in rows.values()] == [1, 1, 24, 24, 8]
    assert [row.get("calibration") for row in rows.values()] == [None, None, 4, 4, 4]
    for row in rows.values():
        assert set(row["rewards"]) == {"left", "all"}
    assert rows["one step, argmax"]["rewards"]["all"] > 100
    assert rows["tteo"]["score_mean"] > rows["one step, argmax"]["score_mean"]
    assert rows["tteo"]["trace"][-1][-1] == pytest.approx(rows["tteo"]["score_mean"], abs=1e-4)
    again, _ = run(tmp_path, {"tteo": tteo(), "best of 4": BestOfN(n=4)}, score=both())
    assert timeless(again) == timeless(result)


def test_rewards_that_are_summed_as_they_are_cost_nothing_more(tmp_path):
    _, rows = run(tmp_path, {"tteo": tteo()}, score=both(None))
    assert rows["tteo"]["passes"] == 20
    row = rows["tteo"]
    assert row["score_mean"] == pytest.approx(row["rewards"]["left"] + 2 * row["rewards"]["all"], rel=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_the_comparison_does_not_depend_on_how_many_go_through_at_once(tmp_path, rows):
    methods = {"tteo": tteo(), "four": BestOfN(n=4)}
    few = {name: m.model_copy(update={"rows": rows}) for name, m in methods.items()}
    whole, _ = run(tmp_path, methods, score=both())
    parts, _ = run(tmp_path, few, score=both(), rows=rows)
    for a, b in zip(timeless(whole), timeless(parts), strict=True):
        assert a.keys() == b.keys()
        assert a["score_mean"] == pytest.approx(b["score_mean"], abs=1e-3)
        assert a["passes"] == b["passes"]
        assert torch.allclose(torch.tensor(a["trace"]), torch.tensor(b["trace"]), atol=1e-3)


def test_a_search_that_stops_early_is_priced_by_its_mean(tmp_path):
    _, rows = run(tmp_path, {"tteo": tteo(patience=1, lr=30.0, iterations=9)})
    row = rows["tteo"]
    assert 2 * 6 <= row["passes"] < 2 * 28
    assert f"best of {round(row['passes'])}, argmax" in rows
    assert row["trace_passes"][-1][-1] == pytest.approx(row["passes"])
