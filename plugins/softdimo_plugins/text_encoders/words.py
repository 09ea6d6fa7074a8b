"""CLIP's words: a prompt becomes 77 ids of a byte-pair vocabulary, between a start and an end."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from softdimo.errors import PluginError, WeightsError

BUNDLED = "bpe_simple_vocab_16e6.txt.gz"
"""OpenAI's merges, as open_clip's package holds them."""
NEEDED, TOLD = ("vocab.json", "merges.txt"), ("tokenizer_config.json", "special_tokens_map.json")
"""Files of a vocabulary's folder; the latter may be missing, and one of them says what it pads with."""
START, END = "<|startoftext|>", "<|endoftext|>"
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What merges never cross: English endings, words, single digits, runs of other signs."""
LENGTH = 77
Cleaning = Literal["transformers", "ftfy", "open_clip"]
"""What is done to a prompt before it is put in lower case, with single spaces.

`transformers`: composed as Unicode's NFC, by its fast tokenizers, and by all of them since version 5. `ftfy`: mended by
that package (broken encodings, curly quotes, most of HTML's escapes), by its older tokenizers where it was installed.
`open_clip`: mended so, and freed from HTML's escapes twice, as they are often nested.
"""


@dataclass(frozen=True)
class Vocabulary:
    """Pieces of words with their ids, and the merges that make them, first ones first."""

    ids: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    pad: str = END
    """What shorter prompts are filled up with."""


class Words:
    """Prompts -> ids [B L]: cleaned, cut into pieces, merged, cut off at L with the end in place, and padded."""

    def __init__(self, vocabulary: Vocabulary, pad: int | None = None, cleaning: Cleaning = "transformers") -> None:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers

        ids = vocabulary.ids
        self.size, self.length, self.cleaning = len(ids), LENGTH, cleaning
        self.start, self.end = ids[START], ids[END]
        self.pad = ids[vocabulary.pad] if pad is None else pad
        self._bpe = Tokenizer(
            models.BPE(vocab=dict(ids), merges=list(vocabulary.merges), end_of_word_suffix="</w>")
        )  # every byte is in the vocabulary, so nothing is unknown
        self._bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    def __call__(self, prompts: Sequence[str]) -> Int[Tensor, "B L"]:
        """Ids of prompts."""
        out = torch.full((len(prompts), self.length), self.pad)
        for row, prompt in zip(out, prompts, strict=True):
            ids = self._bpe.encode(self.clean(prompt), add_special_tokens=False).ids[: self.length - 2]
            row[: len(ids) + 2] = torch.tensor([self.start, *ids, self.end])
        return out

    def clean(self, prompt: str) -> str:
        """A prompt as it is cut into pieces."""
        if self.cleaning == "transformers":  # letter by letter: a Greek sigma at the end of a word is as any other
            return " ".join("".join(map(str.lower, unicodedata.normalize("NFC", prompt))).split())
        import ftfy

        text = ftfy.fix_text(prompt)
        if self.cleaning == "open_clip":
            text = html.unescape(html.unescape(text))
        return " ".join(text.split()).lower()


@cache
def bundled() -> Vocabulary:
    """The vocabulary that all of CLIP's models share, 49408 ids, from open_clip's package, which is not imported.

    Ids: the 256 bytes, the same at the end of a word, the merges, start and end. PluginError without the package.
    """
    found = find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise PluginError("CLIP's vocabulary comes with open-clip-torch: run `pip install 'softdimo[text]'`")
    path = Path(found.submodule_search_locations[0]) / BUNDLED
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise PluginError(f"{path} cannot be read ({error}); install open-clip-torch anew") from error
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [*map(chr, shown), *(chr(256 + i) for i in range(256 - len(shown)))]  # a letter for each byte
    merges = [_pair(line) for line in lines[1 : 49408 - 2 * len(letters) - 2 + 1]]
    pieces = [*letters, *(f"{c}</w>" for c in letters), *map("".join, merges), START, END]
    return Vocabulary({piece: i for i, piece in enumerate(pieces)}, merges)


def _pair(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    return left, right


def read(folder: Path) -> Vocabulary:
    """A vocabulary in transformers' files: vocab.json and merges.txt, and what it pads with if a third file says so.

    WeightsError where a file is missing or is another thing.
    """
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise WeightsError(f"{folder} has no {' and no '.join(missing)}; give the folder of a CLIP tokenizer")
    try:
        ids = json.loads((folder / NEEDED[0]).read_text(encoding="utf-8"))
        lines = (folder / NEEDED[1]).read_text(encoding="utf-8").split("\n")
        said = [json.loads((folder / name).read_text(encoding="utf-8")) for name in TOLD if (folder / name).is_file()]
        pad = next((_content(each["pad_token"]) for each in said if each.get("pad_token")), END)
        lacking = [token for token in (START, END, pad) if token not in ids]
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise WeightsError(f"{folder} holds no tokenizer that can be read ({error}); fetch it again") from error
    if lacking:
        raise WeightsError(f"{folder / NEEDED[0]} has no {', '.join(lacking)}; give the folder of a CLIP tokenizer")
    return Vocabulary(ids, [_pair(line) for line in lines if line and not line.startswith("#version")], pad)


def _content(token: Any) -> str:
    """A special token, written as text or as settings with the text inside."""
    return str(token["content"] if isinstance(token, dict) else token)


def locate(address: str) -> Path:
    """The folder of a vocabulary: a local one, or the files of `hf://owner/repo/folder` in the hub's cache."""
    if not address.startswith("hf://"):
        return Path(address).expanduser()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    owner, repo, inner = [*address.removeprefix("hf://").rstrip("/").split("/", 2), "", ""][:3]
    under = f"{inner}/" if inner else ""
    place = Path()
    for name in (*NEEDED, *TOLD):
        try:
            place = Path(hf_hub_download(f"{owner}/{repo}", f"{under}{name}")).parent
        except (HfHubHTTPError, EntryNotFoundError, OSError, ValueError) as error:
            if (
                name in TOLD
                and isinstance(error, EntryNotFoundError)
                and not isinstance(error, LocalEntryNotFoundError)
            ):
                continue
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WeightsError(f"could not download {address}/{name}: {reason}") from error
    return place


def digest(folder: Path) -> str:
    """Hash of the files that `read` reads; WeightsError as it raises."""
    read(folder)
    sha = hashlib.sha256()
    for name in (*NEEDED, *TOLD):
        if (folder / name).is_file():
            sha.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return sha.hexdigest()
