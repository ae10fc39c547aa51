"""Says what a conversion did with every key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rl.migrate.draft import Draft

_FEW = 5
"""Keys of a section that are still written out one by one."""


def summary_text(draft: Draft) -> str:
    """Kept, renamed, dropped, missing, and what needs a hand: every key of the file once."""
    plain = [name for name, comment in draft.kept.items() if not comment]
    changed = {name: comment for name, comment in draft.kept.items() if comment}
    defaults = [key for key, line in draft.lines.items() if line.comment == f"the default of {draft.framework}"]
    renamed = {name: " and ".join(dict.fromkeys(targets)) for name, targets in draft.renamed.items()}
    lines: list[str] = []
    lines += _block("kept", [", ".join(plain)] if plain else [], len(plain))
    lines += _block("kept, with another meaning", _pairs(changed, ": "), len(changed))
    lines += _block("renamed", _pairs(renamed, " -> "), len(renamed))
    title = f"written out, defaults of {draft.framework}"
    lines += _block(title, [", ".join(defaults)] if defaults else [], len(defaults))
    lines += _block("dropped", _reasons(draft), len(draft.dropped))
    missing = {str(part): short_names(names, draft.given) for part, names in draft.missing.items()}
    lines += _block("missing here", _pairs(missing, ": "), len(missing))
    lines += _block("needs a hand", _pairs(draft.by_hand, ": "), len(draft.by_hand))
    return "\n".join(lines) + "\n"


def short_names(names: Iterable[str], given: Iterable[str]) -> str:
    """Names in a row; `section.*` stands for many keys where these are all that the file has of the section."""
    left, shown, everything = list(names), list[str](), list(given)
    while left:
        parts = left[0].split(".")
        sections = (".".join(parts[:end]) + "." for end in range(1, len(parts)))
        for section in sections:
            below = [name for name in everything if name.startswith(section)]
            if len(below) > _FEW and set(below) <= set(left):
                shown.append(f"{section}*")
                left = [name for name in left if name not in below]
                break
        else:
            shown.append(left.pop(0))
    return ", ".join(shown)


def _block(title: str, texts: Iterable[str], count: int) -> Iterator[str]:
    yield f"{title}: {count}"
    for text in texts:
        yield f"  {text}"


def _pairs(entries: dict[str, str], between: str) -> list[str]:
    return [f"{name}{between}{text}" if text else name for name, text in entries.items()]


def _reasons(draft: Draft) -> list[str]:
    """One line for each reason, with the keys that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in draft.dropped.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{short_names(names, draft.given)}: {reason}" for reason, names in by_reason.items()]
