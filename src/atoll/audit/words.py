"""An audit in words: a line an attack, with its figure, what it means and what would help."""

from __future__ import annotations

from atoll.audit.findings import ATTACKS, Audit

__all__ = ["CAVEAT", "lines", "rows"]

CAVEAT = "An audit that finds nothing proves nothing: another attack may find more."


def lines(audit: Audit) -> list[str]:
    """A line for each attack that was tried."""
    found = rows(audit)
    width = max((len(figure) for _, figure, _ in found), default=0)
    return [f"{name:<12}{figure:<{width}}  {verdict}" for name, figure, verdict in found]


def rows(audit: Audit) -> list[tuple[str, str, str]]:
    """(attack, figure, what it means) for each attack that was tried."""
    found = []
    for name in ATTACKS:
        if name in audit.skipped:
            found.append((name, "not tried", audit.skipped[name]))
        elif getattr(audit, name) is not None:
            found.append((name, *_SAID[name](audit)))
    return found


def _inversion(audit: Audit) -> tuple[str, str]:
    found = audit.inversion
    assert found is not None
    figure = f"{found.psnr:.1f} dB, a blind guess {found.chance:.1f} dB"
    if not found.succeeded:
        return figure, "no sample was read off one client's update" + (
            ", which has masks on" if found.hidden else ""
        )
    said = f"LEAK: the server reads samples off one client's update ({found.attack})"
    names = _names(audit)
    if "noise" in names:
        said += "; central noise protects against those who see the model, not against the server"
    if not audit.summed:
        return figure, f"{said}; would help: a method whose server needs sums only, with secagg"
    return figure, f'{said}; would help: channel = "{" | ".join([*audit.protected, "secagg"])}"'


def _membership(audit: Audit) -> tuple[str, str]:
    found = audit.membership
    assert found is not None
    figure = f"AUC {found.auc:.3f} (95 %: above {found.low:.3f}), advantage {found.advantage:.3f}"
    if not found.succeeded:
        return figure, "losses do not tell training samples from others"
    said = f"LEAK: losses of the {found.model} model tell training samples from others"
    return figure, f"{said}; would help: fewer rounds, weight_decay, or {_noise(audit)}"


def _canary(audit: Audit) -> tuple[str, str]:
    found = audit.canary
    assert found is not None
    figure = f"epsilon above {found.epsilon_lower:.2f} (95 %), {found.right} of {found.guesses} guesses right"
    if not found.succeeded:
        than = "1" if found.reported is None else f"the {found.reported:.2f} that is reported"
        return figure, f"no more was shown than {than}"
    if found.reported is not None:
        return figure, (
            f"LEAK: the run reports {found.reported:.2f}, and more is given away; its noise or its accounting is wrong"
            + ("; noise from a seed protects nobody" if _seeded(audit) else "")
        )
    return figure, f"LEAK: the released sums show who took part; would help: {_noise(audit)}"


def _names(audit: Audit) -> list[str]:
    return [each.partition(":")[0] for each in audit.protected]


def _seeded(audit: Audit) -> bool:
    return any(each.startswith("noise") and "," in each for each in audit.protected)


def _noise(audit: Audit) -> str:
    """How to have noise, or more of it."""
    if _seeded(audit):
        return "noise without a seed"
    if "noise" in _names(audit):
        return "more noise in the channel"
    others = [each for each in audit.protected if not each.startswith("clip")]
    bound = next((each for each in audit.protected if each.startswith("clip")), "clip:0.5")
    return f'channel = "{" | ".join([bound, "noise:1", *others])}"'


_SAID = {"inversion": _inversion, "membership": _membership, "canary": _canary}
