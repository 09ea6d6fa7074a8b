"""What a turn of a player holds at its peak, beside the networks: its passes are made with imitated tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softdimo.engine.recompute import recompute
from softdimo.kinds import Cond, Discriminator, Teacher, Term, Tokenizer
from softdimo.memory.imitation import Imitation, Live, leaves
from softdimo.recipe.model import Hardware
from softdimo.spec import LossSpec

MASKED = 0.64
"""Part of the units that is masked on average, with the usual schedules."""
LOGITS = 5.5 * MASKED
"""Tensors of logits that distribution matching holds at the masked units, once its passes are made."""


@dataclass(frozen=True)
class Phase:
    """What one turn holds at its peak, beside the networks."""

    name: str
    size: int
    """Bytes."""
    unknown: str = ""
    """Why a part of it could not be estimated; empty where all could."""


@dataclass(frozen=True)
class Pass:
    """Bytes that are alive in a pass, beside what it is given and the gradients of weights."""

    forth: int = 0
    """At most, while it goes forth."""
    kept: int = 0
    """When it has gone forth: the result, and what waits for the backward pass."""
    back: int = 0
    """At most, while it goes back."""
    unknown: str = ""
    """Why it could not be made: some networks need real numbers."""

    @property
    def most(self) -> int:
        """At most, there and back."""
        return max(self.forth, self.back)


def made(forward: Callable[[], object], weights: Iterable[nn.Parameter] = (), grad: bool = True) -> Pass:
    """Go forth, and back from what needs a gradient, inside an `Imitation`; `weights` are what it trains."""
    try:
        with torch.set_grad_enabled(grad), Live() as live:
            result = forward()
            forth, kept = live.most, live.now
            ends = [t for t in leaves(result) if isinstance(t, Tensor) and t.requires_grad]
            live.most = live.now
            if grad and ends:
                with torch.autocast(ends[0].device.type, enabled=False):
                    torch.autograd.backward(ends, [torch.empty_like(t) for t in ends])
            trained = [p for p in weights if p.grad is not None]
            back = live.most - sum(p.grad.nbytes for p in trained if p.grad is not None)
            for p in trained:
                p.grad = None
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return Pass(unknown=(str(error).strip().splitlines() or [type(error).__name__])[0][:120])
    return Pass(forth, kept, back)


def student_phases(
    student: Teacher,
    teacher: Teacher,
    tokenizer: Tokenizer | None,
    terms: Mapping[str, Term],
    cond: Cond,
    hardware: Hardware,
    device: str,
) -> list[Phase]:
    """The generator's turn (student, logits, the largest term) and every critic's turn, for a batch of conditions.

    A term that keeps its critic's pass for the critic's turn (`share_t`) holds it beside the others. Tensors that are
    alive count; what an allocator keeps on top does not. RecipeError where layers that are not there shall be
    recomputed.
    """
    with Imitation(device, hardware.precision) as like:
        net = like.of(student, trained=True)
        critics = {name: like.of(term.critic, trained=True) for name, term in terms.items()}
        if hardware.activation_checkpointing:
            for each in (net, *critics.values()):
                if isinstance(each, Teacher):
                    recompute(each)
        rehearsal = _Rehearsal(net, like.of(teacher), like.of(tokenizer), like.of(cond))
        for name, term in terms.items():
            rehearsal.add(name, term, critics[name])
        return rehearsal.phases()


class _Rehearsal:
    """Collects what the turns of an iteration hold, term by term."""

    def __init__(self, student: Teacher, teacher: Teacher, tokenizer: Tokenizer | None, cond: Cond) -> None:
        self.student, self.teacher, self.tokenizer, self.cond = student, teacher, tokenizer, cond
        s, B, weight = student.shape, len(cond), next(student.parameters())
        self.e = torch.empty(B, s.L, student.width, dtype=weight.dtype, device=weight.device)
        self.probs = torch.empty(B, s.L, s.G, s.V, device=weight.device, requires_grad=True)
        self.z = self.probs.nbytes
        self.body = made(lambda: student(self.e, cond).logits, student.parameters())
        self.unknown = [f"student: {self.body.unknown}"] if self.body.unknown else []
        self.drawn, self.pictures, self.shared, self.terms = 0, 0, 0, 0
        self.largest = 3.0 * self.z  # sampling
        self.critics: list[Phase] = []

    def add(self, name: str, term: Term, critic: nn.Module | None) -> None:
        """One more term."""
        self.terms += 1
        if isinstance(critic, Teacher):
            self._matching(name, critic, bool(getattr(term, "shares_forward", False)))
        elif isinstance(critic, Discriminator):
            self._judging(name, critic)
        elif critic is not None:
            self.critics.append(Phase(f"turn of {name}'s critic", 0, "not estimated for a critic of this kind"))
        elif _asks(term):
            self._asked(made(lambda: self.student(self.e, self.cond).logits, grad=False))
        else:
            self._drawing()

    def phases(self) -> list[Phase]:
        """The generator's turn, and those of the critics."""
        kept = self.shared + self.drawn
        forth = self.body.kept + kept + self.pictures + self.terms * self.z + self.largest
        back = self.body.back + kept + (self.terms + 1) * self.z
        size = max(self.body.forth, forth, back)
        return [Phase("generator's turn", int(size), "; ".join(self.unknown)), *self.critics]

    def _matching(self, name: str, critic: Teacher, shares: bool) -> None:
        """A term that compares its critic with the guided teacher."""
        own = made(lambda: critic(self.e, self.cond).logits, critic.parameters())
        if shares:
            self._asked(Pass())
            self.shared += own.kept
        else:
            self._asked(made(lambda: critic(self.e, self.cond).logits, grad=False))
        self._turn(name, own.most + 2 * MASKED * self.z, own.unknown)

    def _asked(self, asked: Pass) -> None:
        """Logits of a network without a gradient, then those of the teacher with guidance, then what compares them."""
        e, cond = torch.cat([self.e, self.e]), Cond.cat([self.cond, self.cond])
        guided = made(lambda: self.teacher(e, cond).logits, grad=False)
        self.largest = max(self.largest, asked.most, guided.most + MASKED * self.z, LOGITS * self.z)

    def _judging(self, name: str, critic: Discriminator) -> None:
        """A discriminator, of what the student draws and of as many real samples."""
        if critic.space == "pixels":
            self._drawing()
        ratio = torch.zeros(len(self.cond), device=self.probs.device)
        own = made(lambda: critic(self._drawn(critic), ratio, self.cond))
        self.drawn = self.z
        self.largest = max(self.largest, own.most + self.z)
        with torch.no_grad():
            x = torch.cat([self._drawn(critic)] * 2) if not own.unknown else self.e
        both = made(lambda: critic(x, torch.cat([ratio, ratio]), Cond.cat([self.cond, self.cond])), critic.parameters())
        self._turn(name, both.most + x.nbytes, own.unknown or both.unknown)

    def _drawn(self, critic: Discriminator) -> Tensor:
        if critic.space != "pixels":
            return self.teacher.soften(self.probs)
        if self.tokenizer is None:
            raise ValueError("a discriminator of pixels needs a tokenizer")
        return self.tokenizer.decode_soft(self.probs, self.cond)

    def _drawing(self) -> None:
        """A term that looks at images."""
        if self.tokenizer is None or self.pictures:
            return
        tokenizer = self.tokenizer
        drawing = made(lambda: tokenizer.decode_soft(self.probs, self.cond))
        self.unknown += [f"decoder: {drawing.unknown}"] if drawing.unknown else []
        self.drawn, self.pictures = self.z, drawing.kept
        self.largest = max(self.largest, drawing.most - drawing.kept + self.z)

    def _turn(self, name: str, size: float, unknown: str) -> None:
        """A critic's turn, in which the student's logits and their gradients are still there."""
        held = self.drawn + (len(self.critics) + 3) * self.z
        self.critics.append(Phase(f"turn of {name}'s critic", 0 if unknown else int(size + held), unknown))


def _asks(term: Term) -> bool:
    """Whether a term without a critic runs a backbone, as distribution matching does."""
    spec = getattr(term, "spec", None)
    return isinstance(spec, LossSpec) and bool(spec.passes())


def fit_phase(
    net: nn.Module, loss: Callable[[Any, Any], object], inputs: object, hardware: Hardware, device: str
) -> Phase:
    """One turn of a network that is trained on data: `loss` of the network and its inputs."""
    with Imitation(device, hardware.precision) as like:
        twin, given = like.of(net, trained=True), like.of(inputs)
        if hardware.activation_checkpointing:
            recompute(twin)
        own = made(lambda: loss(twin, given), twin.parameters())
    return Phase("training turn", own.most, own.unknown)
