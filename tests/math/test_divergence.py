"""Every divergence against finite differences and its f-form; what chunking, precision and clamping may not change."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.profiler import ProfilerActivity, profile

from softdimo.math import divergence as module
from softdimo.math.divergence import Divergence, f_divergence_gradient, f_divergence_value, softmax_gradient

JEFFREYS = [Divergence(name="jeffreys", beta=b) for b in (-0.2, 0.0, 0.5, 1.0)]
ALL = [Divergence(name=n) for n in ("fkl", "rkl", "js", "hellinger", "tv")] + JEFFREYS
every = pytest.mark.parametrize("d", ALL, ids=lambda d: f"{d.name}{d.beta if d.name == 'jeffreys' else ''}")


def logits(n=6, v=11, dtype=torch.float64, scale=2.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    p, q = scale * torch.randn(2, n, v, generator=rng, dtype=torch.float64).to(dtype)
    return p, q


def finite_difference(value, z, h=1e-6):
    """Central differences of sum(value(z)) in every entry of z."""
    out = torch.empty_like(z)
    for i in range(z.numel()):
        step = torch.zeros_like(z).view(-1)
        step[i] = h
        step = step.view_as(z)
        out.view(-1)[i] = (value(z + step) - value(z - step)).sum() / (2 * h)
    return out


def f_form(d):
    """f and f' of the table in the module's docstring."""
    b = d.beta
    return {
        "fkl": (lambda u: u * u.log(), lambda u: u.log() + 1),
        "rkl": (lambda u: -u.log(), lambda u: -1 / u),
        "jeffreys": (lambda u: ((1 - b) * u - b) * u.log(), lambda u: (1 - b) * (u.log() + 1) - b / u),
        "js": (
            lambda u: 0.5 * (u * u.log() - (1 + u) * ((1 + u) / 2).log()),
            lambda u: 0.5 * (u.log() - ((1 + u) / 2).log()),
        ),
        "hellinger": (lambda u: (u.sqrt() - 1).square(), lambda u: 1 - u.rsqrt()),
        "tv": (lambda u: 0.5 * (u - 1).abs(), lambda u: 0.5 * (u - 1).sign()),
    }[d.name]


@every
def test_gradient_is_the_finite_difference_of_the_value(d):
    p, q = logits()
    expected = finite_difference(lambda z: d.value(z, q), p)
    assert torch.allclose(d.gradient(p, q), expected, atol=1e-8, rtol=1e-6)


@every
def test_f_form_gives_the_same_value_and_gradient(d):
    p, q = logits()
    f, df = f_form(d)
    assert torch.allclose(f_divergence_value(f, p, q), d.value(p, q), atol=1e-12)
    assert torch.allclose(f_divergence_gradient(f, df, p, q), d.gradient(p, q), atol=1e-12)


def test_any_f_divergence_matches_finite_differences():
    p, q = logits()
    f, df = (lambda u: (u - 1).square()), (lambda u: 2 * (u - 1))
    expected = finite_difference(lambda z: f_divergence_value(f, z, q, clamp=40.0), p, h=1e-7)
    got = f_divergence_gradient(f, df, p, q, clamp=40.0)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


@every
def test_values_from_the_definition(d):
    p_logits, q_logits = logits()
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    m = (p + q) / 2

    def kl(x, y):
        return (x * (x.log() - y.log())).sum(-1)

    expected = {
        "fkl": kl(q, p),
        "rkl": kl(p, q),
        "jeffreys": (1 - d.beta) * kl(q, p) + d.beta * kl(p, q),
        "js": (kl(p, m) + kl(q, m)) / 2,
        "hellinger": (p.sqrt() - q.sqrt()).square().sum(-1),
        "tv": (p - q).abs().sum(-1) / 2,
    }[d.name]
    assert torch.allclose(d.value(p_logits, q_logits), expected, atol=1e-12)


def test_the_signs_of_the_paper():
    p_logits, q_logits = logits()
    p, q = p_logits.softmax(-1), q_logits.softmax(-1)
    a = p.log() - q.log()
    reverse = p * (a - (p * a).sum(-1, keepdim=True))
    assert torch.allclose(Divergence(name="fkl").gradient(p_logits, q_logits), p - q)
    assert torch.allclose(Divergence(name="rkl").gradient(p_logits, q_logits), reverse)
    mixed = Divergence(name="jeffreys", beta=-0.2).gradient(p_logits, q_logits)
    assert torch.allclose(mixed, 1.2 * (p - q) - 0.2 * reverse)


@every
def test_gradient_sums_to_zero_over_classes(d):
    p, q = logits(n=64, v=500, dtype=torch.float32)
    g = d.gradient(p, q)
    assert (g.sum(-1).abs() < 1e-5 * g.abs().sum(-1)).all()


@every
def test_equal_distributions_are_stationary(d):
    p, _ = logits()
    q = p.clone() if d.name == "tv" else p + 3.0  # the subgradient of TV is 0 only where p and q are equal to the bit
    assert d.value(p, q).abs().max() < 1e-12
    assert d.gradient(p, q).abs().max() < 1e-12


@every
def test_bounds_of_the_value(d):
    p, q = logits(n=200, scale=4.0)
    value = d.value(p, q)
    upper = {"js": math.log(2), "hellinger": 2.0, "tv": 1.0}.get(d.name, math.inf)
    assert value.max() <= upper
    if d.beta < 0:
        assert value.min() < 0
    else:
        assert value.min() >= 0


def test_a_gradient_step_lowers_the_divergence():
    p, q = logits(n=32)
    for d in ALL:
        assert (d.value(p - 0.01 * d.gradient(p, q), q) < d.value(p, q)).all(), d


@every
def test_chunks_change_nothing(d, monkeypatch):
    p, q = logits(n=37, v=11, dtype=torch.float32)
    monkeypatch.setattr(module, "_SMALLEST", 10**9)
    value, gradient = d.value(p, q), d.gradient(p, q)
    for rows in (1, 3, 36):
        monkeypatch.setattr(module, "_SMALLEST", rows * 11)
        monkeypatch.setattr(module, "_CHUNKS", 10**9)
        assert torch.equal(d.value(p, q), value)
        assert torch.equal(d.gradient(p, q), gradient)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(d, dtype):
    p, q = logits(n=16, v=100, dtype=dtype)
    for method in (d.value, d.gradient):
        assert method(p, q).dtype == torch.float32
        assert torch.equal(method(p, q), method(p.float(), q.float()))
        assert torch.equal(method(p, q.float()), method(p.float(), q.float()))


@every
def test_float64_stays(d):
    p, q = logits()
    assert d.value(p, q).dtype == d.gradient(p, q).dtype == torch.float64


@every
def test_no_autograd_and_inputs_untouched(d):
    p, q = logits()
    p.requires_grad_()
    before = p.detach().clone(), q.clone()
    assert not d.value(p, q).requires_grad
    assert not d.gradient(p, q).requires_grad
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


@every
def test_no_masked_unit_is_fine(d):
    p = torch.empty(0, 7)
    assert d.value(p, p).shape == (0,)
    assert d.gradient(p, p).shape == (0, 7)


@every
def test_extreme_and_excluded_classes_stay_finite(d):
    p = torch.tensor([[0.0, 200.0, -200.0, -torch.inf], [0.0, 1.0, 2.0, -torch.inf]])
    q = torch.tensor([[200.0, 0.0, -300.0, -torch.inf], [-torch.inf, 1.0, 2.0, -torch.inf]])
    value, gradient = d.value(p, q), d.gradient(p, q)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient[:, 3] == 0).all()


@every
def test_not_a_number_is_not_hidden(d):
    p, q = logits(dtype=torch.float32)
    p[2, 3] = torch.nan
    assert d.value(p, q).isnan().tolist() == [i == 2 for i in range(6)]
    assert d.gradient(p, q).isnan().any(1).tolist() == [i == 2 for i in range(6)]


def test_clamp_bounds_the_log_ratio():
    p, q = torch.tensor([[0.0, 60.0]]), torch.tensor([[60.0, 0.0]])
    assert Divergence(name="rkl", clamp=5).value(p, q).item() == pytest.approx(5)
    assert Divergence(name="rkl", clamp=30).value(p, q).item() == pytest.approx(30)


def test_beta_needs_jeffreys():
    with pytest.raises(ValidationError, match=r"beta = 0\.5 has no meaning for 'rkl'"):
        Divergence(name="rkl", beta=0.5)


def test_jeffreys_ends_are_the_two_kl():
    p, q = logits(dtype=torch.float32)
    for beta, name in ((0.0, "fkl"), (1.0, "rkl")):
        mixed, plain = Divergence(name="jeffreys", beta=beta), Divergence(name=name)
        assert torch.allclose(mixed.gradient(p, q), plain.gradient(p, q), atol=1e-7)


def test_student_softmax_jacobian_is_the_gradient_of_its_loss():
    p, q = logits()
    student = logits(seed=1)[0].requires_grad_()
    ratio = p.log_softmax(-1) - q.log_softmax(-1)
    (student.softmax(-1) * ratio).sum().backward()
    assert torch.allclose(softmax_gradient(student, p, q), student.grad, atol=1e-12)


def test_student_softmax_jacobian_is_reverse_kl_where_student_is_the_auxiliary():
    p, q = logits()
    assert torch.allclose(softmax_gradient(p, p, q), Divergence(name="rkl").gradient(p, q))


def test_student_softmax_jacobian_saturates_and_the_auxiliary_one_does_not():
    p, q = logits()
    one_hot = torch.full_like(p, -100.0)
    one_hot[:, 0] = 100.0
    assert softmax_gradient(one_hot, p, q).abs().max() < 1e-12
    assert Divergence(name="rkl").gradient(p, q).abs().max() > 1e-2


def peak_bytes(work):
    """Most bytes alive at once that `work` allocated on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        work()
    alive = peak = 0
    for event in prof.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


@every
def test_memory_stays_near_one_logit_tensor(d):
    """B=4, L=256, V=1024 with 0.64 L masked: gathered logits, value, gradient within 2.5 tensors of [B L V]."""
    whole = 4 * 256 * 1024 * 4
    n = 4 * 163
    p, q = logits(n=n, v=1024, dtype=torch.float32)
    peak = peak_bytes(lambda: (d.value(p, q), d.gradient(p, q)))
    assert n * 1024 * 4 <= peak < 1.25 * whole
    inputs = 2 * n * 1024 * 4
    assert inputs + peak < 2.5 * whole
