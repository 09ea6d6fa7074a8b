import torch

from softdimo.kinds import Cond, Context, ImageShape
from softdimo.spec import NetworkSpec
from softdimo_plugins.discriminators.projected import Projected, ProjectedHead
from softdimo_plugins.features.cnn import CNN


def discriminator() -> ProjectedHead:
    torch.manual_seed(0)
    image, classes = ImageShape(1, 28, 28), ("a", "b", "c")

    def make(spec: NetworkSpec) -> torch.nn.Module:
        built: torch.nn.Module = spec.build(context)
        return built.requires_grad_(False).eval()

    context = Context(image, classes, make)
    made = Projected(features=CNN(use="cnn", width=4)).build(context)
    torch.nn.init.normal_(made.classes.weight)
    return made


def test_the_frozen_network_is_neither_trained_nor_saved() -> None:
    made = discriminator()
    assert all(p.requires_grad for p in made.parameters())
    assert {name.split(".")[0] for name in made.state_dict()} == {"body", "score", "classes"}


def test_scores_are_per_sample_and_follow_the_class() -> None:
    made, img = discriminator(), torch.rand(6, 1, 28, 28)
    cond = Cond(torch.tensor([0, 1, 2, 0, 1, -1]))
    scores = made(img, torch.zeros(6), cond)
    assert scores.shape == (6, 1)
    for i in range(6):
        torch.testing.assert_close(made(img[i : i + 1], torch.zeros(1), cond[i : i + 1]), scores[i : i + 1])
    other = made(img, torch.zeros(6), Cond(torch.tensor([1, 1, 2, 0, 1, -1])))
    assert (other != scores).flatten().tolist() == [True, False, False, False, False, False]


def test_gradients_reach_the_pixels() -> None:
    made, img = discriminator(), torch.rand(4, 1, 28, 28, requires_grad=True)
    made(img, torch.zeros(4), Cond(torch.zeros(4, dtype=torch.long))).sum().backward()
    assert img.grad is not None
    assert (img.grad.flatten(1).abs().sum(1) > 0).all()
