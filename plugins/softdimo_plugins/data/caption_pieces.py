"""Single animals as the judge of captioned images sees them: what its classifier learns from."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from softdimo.kinds import Batch, Cond, Context, Data, ImageShape
from softdimo.spec import Spec
from softdimo_plugins.captions.grammar import Caption, Dice, Group
from softdimo_plugins.captions.pieces import CROP, cut
from softdimo_plugins.captions.scenes import Thing, arrange
from softdimo_plugins.data.captions import Captions, CaptionSource


class CaptionPieces(Spec):
    """The animals of `captions` one by one, cut out as its judge cuts them out, 16 x 16, labeled by animal."""

    of: Captions = Captions()
    """The data set whose animals these are; as many pieces as it has images."""

    def build(self, context: Context) -> PieceData:
        """Read the silhouettes. DataError names what to install."""
        return PieceData(self.of, context)


class PieceData(Data):
    """The data set of `CaptionPieces`; held-out pieces are of held-out silhouettes."""

    image = ImageShape(1, CROP, CROP)

    def __init__(self, spec: Captions, context: Context) -> None:
        self.classes, self.whole = spec.animals, spec.build(context)

    def source(self, split: str) -> PieceSource:
        """The split `train` or `held_out`."""
        return PieceSource(self.whole.source(split))

    def fingerprint(self) -> str:
        """That of the data set whose animals these are."""
        return f"pieces/1 {self.whole.fingerprint()}"


class PieceSource:
    """Pieces, cut out as they are read; all animals in turn, in the sizes and places that captions give them."""

    def __init__(self, whole: CaptionSource) -> None:
        self.whole, self.animals = whole, whole.spec.animals

    def __len__(self) -> int:
        return len(self.whole)

    def get(self, index: Int[Tensor, "B"]) -> Batch:
        """Pieces and labels at `index`."""
        whole = self.whole
        alpha = whole.bank.alpha([self._thing(i) for i in index.tolist()], whole.spec.size)[:, 0]
        pieces, _ = cut(alpha > 0.5, alpha)
        return Batch(Cond(index % len(self.animals)), pieces)

    def _thing(self, i: int) -> Thing:
        dice = Dice(self.whole.rolls[i])
        group = Group(1 + dice.number(4), self.animals[i % len(self.animals)])
        return arrange(Caption((group,)), self.whole.rows, dice)[0]
