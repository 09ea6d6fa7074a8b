"""Contracts of networks: tokenizers, teachers, feature networks, discriminators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softdimo.kinds import Cond, Context, Discriminator, Features, ImageShape, Logs, Teacher, Tokenizer
from softdimo.testing.claims import (
    apart,
    gradient,
    independent,
    labels,
    left_alone,
    near,
    need,
    no_global_randomness,
    probs,
    rng,
    tokens,
    unchanged,
)
from softdimo.testing.tiny import IMAGE


def check_tokenizer(tokenizer: Tokenizer, image: ImageShape = IMAGE, cond: Cond | None = None) -> None:
    """Codes in [0, V), images of the right shape in [0, 1], decode == decode_soft at one-hot, gradients to probs.

    And a finite training loss, unless `loss` raises NotImplementedError. `cond`: 3 conditions or more, for tokenizers
    that decode with the encodings of prompts (`encoded` makes some).
    """
    tokenizer = tokenizer.eval()
    shape, img, cond = tokenizer.shape, torch.rand(3, *image, generator=rng()), labels(3) if cond is None else cond[:3]
    with left_alone("encode and decode", tokenizer=tokenizer), unchanged("encode", images=img):
        ids = tokenizer.encode(img)
        need(ids.shape == (3, shape.L, shape.G), f"encode gives [B L G], not {list(ids.shape)}")
        need(not ids.is_floating_point(), f"tokens are whole numbers, not {ids.dtype}")
        need(((ids >= 0) & (ids < shape.V)).all(), "encode gives classes in [0, V), never the mask id V")
        same = (tokenizer.encode(img[:1]) == ids[:1]).float().mean()
        need(same > 0.9, "encode must not depend on the rest of the batch")
        decoded = tokenizer.decode(ids, cond)
        need(decoded.shape == img.shape, f"decode gives {list(img.shape)}, not {list(decoded.shape)}")
        need((decoded >= 0).all() and (decoded <= 1).all(), "images are in [0, 1]")
        hard = functional.one_hot(ids, shape.V).float()
        near(tokenizer.decode_soft(hard, cond), decoded, "decode_soft at one-hot must equal decode")
        independent(lambda t, c: tokenizer.decode(t, c), ids, cond, "the decoded image")
        p = probs(3, shape).requires_grad_()
        soft = tokenizer.decode_soft(p, cond)
        need((soft >= 0).all() and (soft <= 1).all(), "images are in [0, 1]")
        apart(soft, p, "decode_soft")
        hard.requires_grad_()
        gradient(tokenizer.decode_soft(hard, cond).sum(), hard, "decode_soft at one-hot", zero=True)
    for progress in (0.0, 0.5, 1.0):
        _trains(tokenizer, lambda net, r, at=progress: net.loss(img, r, at))  # type: ignore[misc]


def check_features(features: Features, image: ImageShape = IMAGE, classes: int = 3, cond: Cond | None = None) -> None:
    """[B F] features and [B K] logits, finite, each image by itself, with gradients to it; 1 and 3 channels.

    And a finite training loss, unless `loss` raises NotImplementedError. `cond`: 4 conditions, for networks that learn
    from prompts.
    """
    features = features.eval()
    cond = labels(4, classes) if cond is None else cond
    for channels in (1, 3):
        img = torch.rand(4, channels, *image[1:], generator=rng())
        with left_alone("forward", network=features), unchanged("forward", images=img), no_global_randomness("forward"):
            f, logits = features(img)
        width = features.width
        need(f.shape == (4, width), f"features are [B F] with F = width = {width}, not {list(f.shape)}")
        need(logits.ndim == 2 and len(logits) == 4, f"class logits are [B K], not {list(logits.shape)}")
        need(logits.shape[1] >= classes, f"one logit for each of the {classes} classes, not {logits.shape[1]}")
        for i, what in enumerate(("the features", "the class logits")):
            independent(lambda x, c, i=i: features(x)[i], img, cond, what)  # type: ignore[misc]
            x = img.clone().requires_grad_()
            apart(features(x)[i], x, what)
    img = torch.rand(4, *image, generator=rng())
    _trains(features, lambda net, r: net.loss(img, cond, r))


def _trains(net: nn.Module, loss: Callable[[Any, torch.Generator], tuple[Tensor, Logs]]) -> None:
    """On a copy: a finite scalar that trains the weights, with randomness from the generator alone."""
    net = copy.deepcopy(net).train().requires_grad_(True)
    try:
        with no_global_randomness("the training loss"):
            value, logs = loss(net, rng(4))
    except NotImplementedError:
        return
    need(value.ndim == 0 and value.isfinite(), "the training loss is one finite number")
    need(all(torch.as_tensor(v).numel() == 1 for v in logs.values()), "logs are scalars")
    own = list(net.parameters())
    if not own:
        return
    need(value.requires_grad, "the training loss must be differentiable, but its graph is cut (detach, argmax, numpy?)")
    torch.autograd.backward(value)
    need(all(p.grad is None or p.grad.isfinite().all() for p in own), "the gradients of the training must be finite")
    need(any(p.grad is not None and p.grad.abs().max() > 0 for p in own), "the training loss must train the network")


def check_teacher(teacher: Teacher, classes: int = 3, cond: Cond | None = None) -> None:
    """embed == soften at one-hot (masks too), `at` logits equal the full ones, features, no mixing, gradients to e.

    `cond`: 4 conditions or more, for teachers that read the encodings of prompts (`encoded` makes some).
    """
    teacher, shape = teacher.eval(), teacher.shape
    ids, cond = tokens(4, shape), labels(4, classes) if cond is None else cond[:4]
    mask = tokens(4, shape) % 2 == 0
    masked = torch.where(mask, shape.V, ids)
    e = teacher.embed(masked)
    need(e.shape == (4, shape.L, teacher.width), f"embed gives [B L D] with D = width, not {list(e.shape)}")
    _soften(teacher, ids, mask)
    with unchanged("forward", embeddings=e), no_global_randomness("forward"):
        logits = teacher(e, cond).logits
    need(logits.shape == (*ids.shape, shape.V), f"logits are [B L G V], mask excluded, not {list(logits.shape)}")
    near(teacher(e, cond, at=mask).logits, logits[mask], "logits with `at` must equal the full logits at these units")
    blocks = (0, teacher.depth - 1)
    out = teacher(e, cond, at=torch.zeros_like(mask), features=blocks)
    need(out.logits.numel() == 0, "an `at` without any True gives no logits")
    shapes = [(f.ndim, len(f), f.shape[-1]) for f in out.features]
    need(shapes == [(3, 4, teacher.width)] * 2, "one [B l D] feature per requested block, in order")
    for i, kept in zip(blocks, out.features, strict=True):
        full = teacher(e, cond, features=(i,)).features
        need(len(full) == 1, "one [B l D] feature per requested block, in order")
        near(kept, full[0], f"the feature of block {i} must be the same alone, in company and without the head")
    independent(lambda x, c: teacher(x, c).logits, e, cond, "the logits")
    need(teacher(e, teacher.null(cond)).logits.shape == logits.shape, "the unconditional branch must work")
    leaf = e.detach().requires_grad_()
    apart(teacher(leaf, cond).logits.square(), leaf, "the logits")
    need(teacher.table_rms().ndim == 0 and teacher.table_rms() > 0, "table_rms is one positive number")
    names = [name for name, _ in teacher.named_parameters()]
    for prefix in teacher.frozen():
        need(any(n.startswith(prefix) for n in names), f"frozen() names `{prefix}`, but no parameter starts with it")
    inside = {id(m) for m in teacher.modules()} - {id(teacher)}
    need(all(id(layer) in inside for layer in teacher.layers()), "layers() names modules inside the network")
    near(copy.deepcopy(teacher)(e, cond).logits, logits, "a deep copy must compute the same")


def _soften(teacher: Teacher, ids: Tensor, mask: Tensor) -> None:
    """`soften` is the expected embedding: `embed` at one-hot, linear in the probabilities, masks included."""
    V = teacher.shape.V
    hard = functional.one_hot(ids, V).float()
    p = probs(len(ids), teacher.shape)
    near(teacher.soften(hard), teacher.embed(ids), "soften at one-hot must equal embed")
    nothing, everything = torch.zeros_like(mask), torch.ones_like(mask)
    for name, m in {"some": mask, "no": nothing, "all": everything}.items():
        e, at_hard, at_p = teacher.embed(torch.where(m, V, ids)), teacher.soften(hard, m), teacher.soften(p, m)
        near(at_hard, e, f"soften at one-hot with {name} masked units must equal embed of these tokens")
        half = teacher.soften((p + hard) / 2, m)
        if teacher.linear:
            near(half, (at_p + at_hard) / 2, "soften is the expected embedding E^T p, linear in the probabilities")
    near(teacher.soften(p, nothing), teacher.soften(p), "soften without a mask must equal soften with an empty one")
    p.requires_grad_()
    apart(teacher.soften(p, mask), p, "soften")


def check_discriminator(discriminator: Discriminator, made_in: Context) -> None:
    """[B heads] finite scores, no mixing, gradients to the input and to its own parameters, never to the teacher's."""
    net, n = made_in.teacher, 4
    assert net is not None, "give the context that it was built in"
    need(discriminator.space in ("embedding", "pixels"), "`space` is `embedding` or `pixels`")
    pixels = discriminator.space == "pixels"
    x = torch.rand(n, *made_in.image, generator=rng()) if pixels else net.embed(tokens(n, net.shape, masked=True))
    ratio, cond = torch.linspace(0.1, 0.9, n), labels(n, len(made_in.classes))
    x = x.detach().requires_grad_()
    own = [p for p in discriminator.parameters() if p.requires_grad]
    need(len(own) > 0, "a discriminator has parameters to train")
    shared = {id(p) for p in net.parameters()} & {id(p) for p in discriminator.parameters()}
    need(not shared, "the frozen teacher must not be registered in the discriminator (hold it in a tuple)")
    with left_alone("a discriminator", teacher=net), unchanged("a discriminator", input=x, ratios=ratio):
        scores = discriminator(x, ratio, cond)
        need(scores.ndim == 2 and len(scores) == n, f"a discriminator gives [B heads], not {list(scores.shape)}")
        independent(lambda a, c: discriminator(a, torch.full((len(a),), 0.5), c), x, cond, "the scores")
        apart(scores, x, "the scores")
        torch.autograd.backward(scores.square().sum())
        need(all(p.grad is None or p.grad.isfinite().all() for p in own), "its parameters' gradients must be finite")
        need(any(p.grad is not None and p.grad.abs().max() > 0 for p in own), "its parameters must get gradients")
