"""Read sections of documentation pages by their heading, and the code blocks in them by language."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("operations", "switching-tokens-for-a-fleet", "a-backend-you-have")
README, OPERATIONS, FLEET, BACKEND = (ROOT / name for name in ("README.md", *(f"docs/{page}.md" for page in PAGES)))


def section(page: Path, heading: str) -> list[str]:
    """Return the lines under a heading of the second level, up to the next one."""
    lines = page.read_text().splitlines()
    begin = lines.index(f"## {heading}") + 1
    end = next((n for n, line in enumerate(lines[begin:], begin) if line.startswith("## ")), len(lines))
    return lines[begin:end]


def blocks(lines: list[str], *languages: str) -> list[str]:
    """Return the text of each fenced block in one of these languages."""
    found: list[str] = []
    inside = False
    for line in lines:
        if line.startswith("```"):
            inside = not inside and line[3:] in languages
            if inside:
                found.append("")
        elif inside:
            found[-1] += line + "\n"
    return found
