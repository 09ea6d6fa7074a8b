"""The contract checks of metrics and data sets accept what keeps the contract and name what breaks it."""

from __future__ import annotations

import hashlib
import uuid

import numpy as np
import pytest
import torch

from softdimo import testing
from softdimo.inputs.cursor import Shuffled
from softdimo.kinds import Batch, Cond, Data, ImageShape, Metric
from softdimo_plugins.features.cnn import CNN
from softdimo_plugins.metrics.inception_score import InceptionScore
from tests.helpers import Blobs, refused, variant


class Distance(Metric):
    """Distance of the mean features of generated images and reference, and the share of bright ones by label."""

    def __init__(self, net):
        self.net, self.real, self.sha = net, [], hashlib.sha256()
        self.size = 0
        self.reset()

    def features(self, img):
        with torch.no_grad():
            return self.net(img)[0].double()

    def reference(self, img, cond):
        self.sha.update(img.numpy().tobytes())
        self.real.append(self.features(img))

    def reset(self):
        self.fake, self.right = [], []

    def update(self, img, cond):
        self.fake.append(self.features(img))
        self.right.append((img.mean((1, 2, 3)) > 0.5) == (cond.labels == 0))

    def result(self):
        gap = torch.cat(self.fake).mean(0) - torch.cat(self.real).mean(0)
        return {"distance": float(gap.norm()), "right": float(torch.cat(self.right).double().mean())}

    def fingerprint(self):
        weights = b"".join(p.detach().numpy().tobytes() for p in self.net.parameters())
        return {"formula": "distance/1", "reference": self.sha.hexdigest(),
                "features": hashlib.sha256(weights).hexdigest()}  # fmt: skip


def metric(**members):
    cls = variant(Distance, **members)
    return lambda context: cls(context.make(CNN(use="cnn", width=4, features=8)))


def without(name):
    return lambda self: {k: v for k, v in Distance.fingerprint(self).items() if k != name}


def batch_means(self):
    """The mean over batches of each batch's distance."""
    real = torch.cat(self.real).mean(0)
    gaps = [(f.mean(0) - real).norm() for f in self.fake]
    return Distance.result(self) | {"distance": float(torch.stack(gaps).mean())}


def first_half(self):
    gap = torch.cat(self.fake)[:24].mean(0) - torch.cat(self.real).mean(0)
    return {"distance": float(gap.norm())}


def thinned(self):
    some = torch.randperm(48)[:24]
    return {"distance": float((torch.cat(self.fake)[some].mean(0) - torch.cat(self.real).mean(0)).norm())}


def counted(self, img, cond):
    self.update(img, cond)
    return img, cond


def keeps_all(self):
    self.fake, self.right = getattr(self, "fake", []), getattr(self, "right", [])


def forgets_all(self):
    Distance.reset(self)
    self.real = self.real[:1]


def test_metrics():
    testing.check_metric(metric())
    splits = InceptionScore(features=CNN(use="cnn", width=4), splits=3)
    with refused("must not depend on the order of the images"):  # by its definition
        testing.check_metric(splits.build)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"reset": keeps_all}, "`reset` must forget the generated images and keep the reference"),
        ({"reset": forgets_all}, "must not depend on how images are cut"),
        ({"result": batch_means}, "must not depend on how images are cut into batches"),
        ({"result": first_half}, "must not depend on the order of the images"),
        ({"result": thinned}, "must not draw from a global"),
        ({"result": lambda s: {"distance": float("nan")}}, "`distance` must be a finite number, not nan"),
        ({"result": lambda s: {"distance": torch.tensor(1.0)}}, "`distance` must be a finite number, not tensor"),
        ({"result": lambda s: {}}, "one or more"),
        ({"result": lambda s: {"distance": 1.0}}, "other images and labels must give other numbers"),
        ({"features": lambda s, img: Distance.features(s, img.clamp_(max=0.9))}, "change its reference in place"),
        ({"look": lambda s, img, cond: (img[:2], cond[:2])}, "another rank's `look` saw must be to `update`"),
        ({"look": counted}, "`look` must change nothing"),
        ({"look": lambda s, img, cond: lambda: img}, "sending what `look` saw must work, but raises"),
        ({"fingerprint": without("reference")}, "another reference, other numbers: so the fingerprint must change"),
        ({"fingerprint": without("features")}, "another networks?, other numbers: so the fingerprint must change"),
        ({"fingerprint": lambda s: {"object": id(s)}}, "must have the same fingerprint"),
        ({"fingerprint": lambda s: {"metric": repr(s)}}, "must have the same fingerprint"),
        ({"fingerprint": lambda s: {"batches": len(s.real)}}, "must have the same fingerprint"),
        (
            {"fingerprint": lambda s: Distance.fingerprint(s) | {"images": sum(map(len, s.fake))}},
            "generated images must not change the fingerprint",
        ),
        ({"fingerprint": lambda s: {"net": s.net}}, "holds text and numbers by name"),
        ({"fingerprint": lambda s: {}}, "says what the numbers depend on"),
        ({"notes": lambda s: (1,)}, "notes are sentences"),
    ],
)  # fmt: skip
def test_metrics_that_break_the_contract(members, message):
    with refused(message):
        testing.check_metric(metric(**members))


class Set(Blobs):
    """Random images of three classes."""

    def __init__(self, train=61, held_out=30):
        super().__init__(train, held_out)


def data(**members):
    cls = variant(Set, **members)
    return lambda context: cls()


def source(change):
    """Splits whose batches are changed: change(batch, index)."""

    def made(self, split):
        plain = Set.source(self, split)
        get = plain.get
        plain.get = lambda index: change(get(index), index)
        return plain

    return made


def images(change):
    return source(lambda batch, index: Batch(batch.cond, change(batch.images)))


def streamed(base):
    return lambda self, batch_size, seed, rank=0, world=1: base(self.source("train"), batch_size, seed, rank, world)


class Forgets(Shuffled):
    """Resumes at the start of the epoch."""

    def state_dict(self):
        return {"epoch": self.epoch}

    def load_state_dict(self, state):
        super().load_state_dict({"epoch": state["epoch"], "offset": 0})


class Drifts(Shuffled):
    """Draws its permutations one after the other, so that a later epoch is not that of its number."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.rng = torch.Generator().manual_seed(self.seed)

    def __next__(self):
        if self._order is None or self.offset + self.batch_size * self.world > len(self.source):
            self._order = torch.randperm(len(self.source), generator=self.rng)
            self.epoch, self.offset = self.epoch + 1, 0
        order, begin = self._order, self.offset + self.rank * self.batch_size
        self.offset += self.batch_size * self.world
        return self.source.get(order[begin : begin + self.batch_size])


class Together(Shuffled):
    """Every rank gets the same batches."""

    def __init__(self, source, batch_size, seed, rank=0, world=1):
        super().__init__(source, batch_size, seed)


class Apart(Shuffled):
    """Every rank shuffles for itself."""

    def __init__(self, source, batch_size, seed, rank=0, world=1):
        super().__init__(source, batch_size, seed + 1000 * rank)


class Objects(Shuffled):
    """A state that is no plain number."""

    def state_dict(self):
        return super().state_dict() | {"order": self._order}


def noisy(img):
    return (img + 0.01 * torch.rand(img.shape, generator=NOISE)).clamp(0, 1)


NOISE = torch.Generator().manual_seed(0)
LABELS = {"has_images": False, "source": source(lambda batch, index: Batch(batch.cond))}


def test_data():
    testing.check_data(data())
    testing.check_data(lambda context: Set(train=4, held_out=1))
    testing.check_data(data(**LABELS))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"classes": ()}, "`classes` are names"),
        ({"image": ImageShape(3, 4, 6)}, r"images are \[61, 3, 4, 6\], not \[61, 1, 4, 6\]"),
        ({"source": images(lambda x: 255 * x)}, r"images are in \[0, 1\]"),
        ({"source": images(lambda x: 2 * x - 1)}, r"images are in \[0, 1\]"),
        ({"source": images(lambda x: (255 * x).byte())}, "images are floating point"),
        ({"source": images(noisy)}, "the same ones each time"),
        ({"source": images(lambda x: x.flip(-1) if np.random.rand() < 0.5 else x)}, "the same ones each time|not draw"),
        ({"source": source(lambda b, i: Batch(Cond(b.cond.labels + 1), b.images))}, "below the number of classes, 3"),
        ({"source": source(lambda b, i: Batch(Cond(b.cond.labels - 1), b.images))}, "labels are from 0"),
        ({"source": lambda s, split: Set.source(s, "train")}, "`held_out` must be other samples than `train`"),
        ({"reference": lambda s: torch.utils.data.TensorDataset(torch.zeros(0))}, "the reference must not be empty"),
        ({"reference": lambda s: s.source("held_out")}, "augmented copies must come last in `train`"),
        ({"has_images": False}, "`has_images` must say whether a batch has images"),
        ({"source": source(lambda b, i: Batch(b.cond))}, "`has_images` must say whether a batch has images"),
        (LABELS | {"stream": streamed(Together)}, "two ranks must not get the same labels"),
        ({"stream": streamed(Forgets)}, "go on exactly where the saved one was"),
        ({"stream": streamed(Drifts)}, "go on exactly where the saved one was"),
        ({"stream": streamed(Together)}, "two ranks must get disjoint shares"),
        ({"stream": streamed(Apart)}, "two ranks must get disjoint shares"),
        ({"stream": streamed(Objects)}, "a cursor's state is plain numbers"),
        ({"stream": lambda s, b, seed, rank=0, world=1: Data.stream(s, b, 0, rank, world)}, "another seed must give"),
        ({"stream": lambda s, b, seed, *a: Data.stream(s, b + 1, seed, *a)}, "every batch .* has 15 samples"),
        ({"conditions": lambda s, n: Cond(torch.arange(n) * 3 // n % 2)}, "must be balanced over the 3 classes"),
        ({"conditions": lambda s, n: Cond(torch.randint(3, (n,)))}, "conditions have a fixed order"),
        ({"conditions": lambda s, n: Cond(torch.arange(3).repeat_interleave(n // 3))}, r"conditions\(7\) gives 7"),
        ({"fingerprint": lambda s: uuid.uuid4().hex}, "must have the same fingerprint"),
        ({"fingerprint": lambda s: 17}, "a fingerprint is text"),
    ],
)  # fmt: skip
def test_data_that_break_the_contract(members, message):
    with refused(message):
        testing.check_data(data(**members))
