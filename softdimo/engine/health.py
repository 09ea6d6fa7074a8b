"""The state of a run in words, from the numbers in its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def health(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Short statements about the latest log row, worst first; empty when there is nothing to say."""
    if not rows:
        return []
    now = rows[-1]
    warn: list[str] = []
    fine: list[str] = []
    for name in dict.fromkeys(k.split("/")[0] for k in now if "/" in k):
        term = {k.removeprefix(f"{name}/"): v for k, v in now.items() if k.startswith(f"{name}/")}
        student, teacher = term.get("student_entropy"), term.get("teacher_entropy")
        if student is not None and teacher is not None:
            text = f"token entropy {student:.2f} nats (teacher at x_t {teacher:.2f})"
            (warn if student < 0.02 else fine).append(text + (": the student has collapsed" if student < 0.02 else ""))
        auxiliary, ce = term.get("auxiliary_entropy"), term.get("auxiliary_ce")
        if auxiliary is not None and ce is not None:
            lag = ce - auxiliary
            text = f"auxiliary lag {lag:+.2f} nats (its cross-entropy on student samples above its entropy)"
            late = lag > 0.5
            (warn if late else fine).append(text + (": it trails the student; raise its lr or updates" if late else ""))
        real, fake = term.get("real"), term.get("fake")
        if real is not None and fake is not None:
            text = f"D(real) {real:.2f}, D(generated) {fake:.2f}"
            if real > 0.95 and fake < 0.05:
                warn.append(text + ": the discriminator wins everything; weaken it or lower its lr")
            elif abs(real - fake) < 0.01:
                warn.append(text + ": the discriminator cannot tell them apart")
            else:
                fine.append(text)
    warn_reward, fine_reward = _rewards(rows)
    return warn + warn_reward + fine + fine_reward


def _rewards(rows: Sequence[Mapping[str, float]]) -> tuple[list[str], list[str]]:
    """Optimized against held-out rewards: hacking is one rising while the other falls."""
    now = rows[-1]
    warn: list[str] = []
    fine: list[str] = []
    terms = dict.fromkeys(k.split("/")[0] for k in now if "/held_out/" in k)
    for term in terms:
        watched = [k for k in now if k.startswith(f"{term}/held_out/")]
        skip = {"loss", "grad_at_logits", "weight", "critic_grad_norm"}
        optimized = [k for k in now if k.startswith(f"{term}/") and k not in watched and k.split("/")[1] not in skip]
        then = next((r for r in rows if all(k in r for k in watched + optimized)), now)
        up = sum(now[k] - then[k] for k in optimized)
        out = sum(now[k] - then[k] for k in watched)
        text = f"optimized reward {up:+.3f}, held-out reward {out:+.3f} since the start"
        if up > 0 > out:
            warn.append(text + ": they part; the reward is being hacked")
        else:
            fine.append(text)
    return warn, fine
