"""The one legend of shapes.

B batch, L token positions, G groups of bits per token (1 for VQ codes), V classes per group (mask excluded),
D width, N masked units, C H W image in [0, 1]. The mask id is V: it has no logit, so it can never be sampled.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "B L G"]
"""Token ids in [0, V]; V is the mask id."""
Mask = Bool[Tensor, "B L G"]
"""True where a unit is masked."""
Logits = Float[Tensor, "B L G V"]
Probs = Float[Tensor, "B L G V"]
UnitLogits = Float[Tensor, "N V"]
"""Logits of the masked units only, in the order of `mask.nonzero()`."""
Embedding = Float[Tensor, "B L D"]
Image = Float[Tensor, "B C H W"]
PerSample = Float[Tensor, "B"]
Labels = Int[Tensor, "B"]
