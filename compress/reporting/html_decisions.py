"""What each step did, left as it was, and considered without doing it, for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from compress.counting import counted
from compress.escaping import html as escape
from compress.steps import Change, Step

LISTED = 200  # decisions of one kind beyond this are summed up by reason


def decisions(step: Step) -> str:
    """Render one step: what was done, counted; layers that stay as they were, and what was considered, with reasons."""
    if not step.changes:
        return ""
    actions = Counter(change.action for change in step.done)
    single = {change.action: change for change in step.done}
    done = "".join(
        f"<li>{count} × {escape(action)}</li>" if count > 1 else f"<li>{_alone(single[action])}</li>"
        for action, count in actions.items()
    )
    stay = [change for change in step.skipped if change.stays]
    considered = [change for change in step.skipped if not change.stays]
    lists = _listed("Left as they were", stay) + _listed("Considered and not done", considered)
    return f"<details><summary>{escape(summary(step))}</summary><ul>{done}</ul>{lists}</details>"


def summary(step: Step) -> str:
    """Count what the step lists.

    >>> summary(Step("quantize", None, (Change("a", "runs in int8"), Change("b", "left in float", skipped=True))))
    'quantize: 1 done, 1 left as it was'
    """
    stay = sum(change.stays for change in step.skipped)
    considered = len(step.skipped) - stay
    words = [f"{len(step.done)} done"]
    if stay:
        words.append(f"{stay} left as {'it was' if stay == 1 else 'they were'}")
    if considered:
        words.append(f"{considered} considered and not done")
    return f"{step.name}: {', '.join(words)}"


def _listed(heading: str, changes: Sequence[Change]) -> str:
    rows = [(change.layer, change.action, change.reason) for change in changes]
    if len(rows) > LISTED:
        counts = Counter((action, reason) for _, action, reason in rows)
        rows = [(counted(number, "layer"), action, reason) for (action, reason), number in counts.most_common()]
    lines = "".join(
        f'<tr><td class="text"><code>{escape(layer)}</code></td><td class="text">{escape(action)}</td>'
        f'<td class="text">{escape(reason)}</td></tr>'
        for layer, action, reason in rows
    )
    if not lines:
        return ""
    return (
        f'<p>{heading} ({len(changes)}):</p><div class="scroll"><table><thead><tr><th>layer</th><th class="text">what</th>'
        f'<th class="text">reason</th></tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _alone(change: Change) -> str:
    reason = f", {escape(change.reason)}" if change.reason else ""
    return f"<code>{escape(change.layer)}</code>: {escape(change.action)}{reason}"
