"""Networks that diffusers saves as folders: weights, and beside them a config.json."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from softdimo.errors import PluginError, WeightsError
from softdimo.weights import made_here
from softdimo_plugins.public import PublicSpec


class DiffusersSpec(PublicSpec):
    """Settings of a network whose public files are a folder of diffusers, or one file of it."""

    told: ClassVar[Mapping[str, str]]
    """Settings that weights do not show -> what config.json calls them."""

    def load_weights(self, module: nn.Module, path: Path) -> None:
        """As for every published network; WeightsError also where a config.json beside the file says otherwise."""
        beside = path.with_name("config.json")
        theirs = {} if made_here(path) else read_config(beside)
        ours = json.loads(self.model_dump_json(include=set(self.told)))
        other = [name for name, key in self.told.items() if theirs.get(key, ours[name]) != ours[name]]
        if other:
            here = ", ".join(f"{name}: {ours[name]}" for name in other)
            there = ", ".join(f"{name}: {theirs[self.told[name]]}" for name in other)
            raise WeightsError(f"{beside} says {there}; the recipe says {here}. Change it to {there}")
        super().load_weights(module, path)


def read_config(path: Path) -> Mapping[str, Any]:
    """The content of a config.json; nothing where there is none. WeightsError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{path} is damaged ({error}); fetch it again, or remove it") from error
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def needing_diffusers(what: str) -> Iterator[None]:
    """Around an import: PluginError that says what mends it; `what` needs it, as "the teacher `x`"."""
    try:
        yield
    except ImportError as error:
        raise PluginError(f"{what} needs diffusers ({error}): run `pip install 'softdimo[text]'`") from error
