"""Every embedded network and reward keeps the contract of its kind, in each of its shapes."""

from dataclasses import replace

import pytest
import torch

from softdimo.kinds import ImageShape
from softdimo.testing import check_reward, check_teacher, check_tokenizer, context
from softdimo_plugins.features.cnn import CNN
from softdimo_plugins.rewards.class_log_prob import ClassLogProb
from softdimo_plugins.rewards.connected import Connected
from softdimo_plugins.teachers.compact import Compact
from softdimo_plugins.tokenizers.conv import ConvLFQ, ConvVQ


def made(spec, **changes):
    torch.manual_seed(0)
    return spec.build(replace(context(), **changes))


@pytest.mark.parametrize("settings", [{}, {"local": False}, {"width": 24, "heads": 3, "depth": 1}])
def test_teacher(settings):
    check_teacher(made(Compact(**({"width": 16} | settings))))


@pytest.mark.parametrize("spec", [ConvVQ, ConvLFQ])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [2, 4])
def test_tokenizer(spec, channels, patch):
    image = ImageShape(channels, 8, 12)
    check_tokenizer(made(spec(patch=patch, width=8), image=image).eval(), image)


def test_rewards():
    check_reward(made(Connected()))
    check_reward(made(ClassLogProb(classifier=CNN(width=4))), image=(8, 12))
