"""The reward networks written out from their papers' formulas, on plain state dicts: nothing of the libraries' code."""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d, gelu, normalize

from softdimo.kinds import Cond

PROMPTS = ("a red cat", "two dogs, at night", "", "a red cat")


def cond(*prompts):
    return Cond(torch.full((len(prompts),), -1), prompts)


def noise(n=4, size=(40, 50), seed=0):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(x, w, name, eps):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (var + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(q, k, v, heads, allowed):
    """softmax(q k^T / sqrt(d)) v per head; `allowed` [B or 1, Lq or 1, Lk] says who may look where."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.mT / q.shape[-1] ** 0.5
    logits = logits.masked_fill(~allowed[:, None], float("-inf"))
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def patches(img, w, name, patch):
    """[B L D], row by row."""
    return conv2d(img, w[f"{name}.weight"], w.get(f"{name}.bias"), stride=patch).flatten(2).mT


def clip_block(x, w, name, heads, allowed, act):
    y = layer_norm(x, w, f"{name}.ln_1", 1e-5)
    q, k, v = (y @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]).chunk(3, -1)
    x = x + linear(attention(q, k, v, heads, allowed), w, f"{name}.attn.out_proj")
    y = layer_norm(x, w, f"{name}.ln_2", 1e-5)
    return x + linear(act(linear(y, w, f"{name}.mlp.c_fc")), w, f"{name}.mlp.c_proj")


def clip_image(img, w, heads, patch, act=gelu, depth=2):
    """Unit vectors of prepared images, by the keys of open_clip."""
    x = patches(img, w, "visual.conv1", patch)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + w["visual.positional_embedding"]
    x = layer_norm(x, w, "visual.ln_pre", 1e-5)
    everywhere = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool)
    for i in range(depth):
        x = clip_block(x, w, f"visual.transformer.resblocks.{i}", heads, everywhere, act)
    return normalize(layer_norm(x[:, 0], w, "visual.ln_post", 1e-5) @ w["visual.proj"], dim=-1)


def clip_text(ids, w, heads, act=gelu, depth=2):
    """Unit vectors of prompts [B 77], read at the end token, the largest id."""
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    before = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool).tril()
    for i in range(depth):
        x = clip_block(x, w, f"transformer.resblocks.{i}", heads, before, act)
    x = layer_norm(x, w, "ln_final", 1e-5)[torch.arange(len(ids)), ids.argmax(1)]
    return normalize(x @ w["text_projection"], dim=-1)


def as_transformers(w, depth=2):
    """A CLIP's state dict under the keys of transformers."""
    out = {
        "logit_scale": w["logit_scale"],
        "visual_projection.weight": w["visual.proj"].T,
        "text_projection.weight": w["text_projection"].T,
        "text_model.embeddings.token_embedding.weight": w["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": w["positional_embedding"],
        "vision_model.embeddings.class_embedding": w["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": w["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": w["visual.positional_embedding"],
    }
    norms = {"text_model.final_layer_norm": "ln_final", "vision_model.pre_layrnorm": "visual.ln_pre",
             "vision_model.post_layernorm": "visual.ln_post"}  # fmt: skip
    inner = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
    for i in range(depth):
        for tower, there in (("text_model", ""), ("vision_model", "visual.")):
            mine, theirs = f"{tower}.encoder.layers.{i}", f"{there}transformer.resblocks.{i}"
            norms |= {f"{mine}.{a}": f"{theirs}.{b}" for a, b in inner.items()}
            for kind in ("weight", "bias"):
                for letter, part in zip("qkv", w[f"{theirs}.attn.in_proj_{kind}"].chunk(3), strict=True):
                    out[f"{mine}.self_attn.{letter}_proj.{kind}"] = part
    out |= {f"{a}.{kind}": w[f"{b}.{kind}"] for a, b in norms.items() for kind in ("weight", "bias")}
    return {key: value.clone() for key, value in out.items()}


def blip_image(img, w, heads, patch, depth=2):
    """Every token of a ViT of prepared images [B L D], by ImageReward's keys."""
    x = patches(img, w, "patch_embed.proj", patch)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    everywhere = torch.ones(1, x.shape[1], x.shape[1], dtype=torch.bool)
    for i in range(depth):
        block = f"blocks.{i}"
        q, k, v = linear(layer_norm(x, w, f"{block}.norm1", 1e-6), w, f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attention(q, k, v, heads, everywhere), w, f"{block}.attn.proj")
        y = gelu(linear(layer_norm(x, w, f"{block}.norm2", 1e-6), w, f"{block}.mlp.fc1"))
        x = x + linear(y, w, f"{block}.mlp.fc2")
    return layer_norm(x, w, "norm", 1e-6)


def blip_text(ids, mask, seen, w, heads, depth=2):
    """BERT whose every layer looks at the words, then at the image; the first token [B D]."""
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = layer_norm(x, w, "embeddings.LayerNorm", 1e-12)
    words, image = mask.bool()[:, None, :], torch.ones(1, 1, seen.shape[1], dtype=torch.bool)
    for i in range(depth):
        layer = f"encoder.layer.{i}"
        for name, other, allowed in (("attention", None, words), ("crossattention", seen, image)):
            source = x if other is None else other
            q = linear(x, w, f"{layer}.{name}.self.query")
            k, v = (linear(source, w, f"{layer}.{name}.self.{part}") for part in ("key", "value"))
            y = linear(attention(q, k, v, heads, allowed), w, f"{layer}.{name}.output.dense")
            x = layer_norm(x + y, w, f"{layer}.{name}.output.LayerNorm", 1e-12)
        y = linear(gelu(linear(x, w, f"{layer}.intermediate.dense")), w, f"{layer}.output.dense")
        x = layer_norm(x + y, w, f"{layer}.output.LayerNorm", 1e-12)
    return x[:, 0]
