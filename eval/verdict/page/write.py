"""A verdict as files, as the few lines of a terminal, and as a notebook shows it."""

import os
from pathlib import Path

from eval.verdict.decision import Verdict
from eval.verdict.declared import Results
from eval.verdict.page import blocks, content, saying
from eval.verdict.page.sheets import rows_sheet, seeds_sheet
from eval.verdict.page.shown import Shown
from eval.verdict.page.style import style
from train.run.files import json_files

FILES = ("verdict.html", "verdict.md", "verdict.csv", "seeds.csv", "verdict.json")
# Nothing is fetched: the browser itself refuses to, by the first of these.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<link rel="icon" href="data:,"/>
"""


def write_page(folder: str | Path, verdict: Verdict, results: Results, shown: Shown | None = None) -> dict[str, Path]:
    """Writes verdict.html, verdict.md, verdict.csv, seeds.csv and verdict.json into the folder, which it makes.

    The two CSV files hold no time, host or path; seeds.csv is what `launch.ablate --table` reads.

    Returns:
        Name of the file -> its path.

    Raises:
        OSError: the folder cannot be written.
    """
    folder, page = Path(folder), content.page(verdict, results, shown or Shown())
    markdown = "\n\n".join(blocks.markdown(block) for block in page) + "\n"
    told = json_files.dumps(verdict.to_json(), indent=2) + "\n"
    texts = (html(page), markdown, rows_sheet(verdict), seeds_sheet(verdict, results), told)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(FILES, texts, strict=True):
        new = folder / f".{name}.{os.getpid()}.new"  # whole or not at all
        new.write_text(text, encoding="utf-8", newline="\n")
        new.replace(folder / name)
    return {name: folder / name for name in FILES}


def html(page: list[blocks.Block]) -> str:
    """A whole page, well-formed as XML, too; its title is its first heading."""
    title = next(block.text for block in page if isinstance(block, blocks.Heading))
    body = "\n".join(map(blocks.html, page))
    head = f"{_HEAD}<title>{blocks.safe(title)}</title>\n<style>\n{style(':root')}</style>\n</head>\n"
    return f'{head}<body class="heed">\n<main>\n{body}\n</main>\n</body>\n</html>\n'


def notebook_html(verdict: Verdict) -> str:
    """The question, the words and the picture of the intervals, for the cell of a notebook."""
    page = [blocks.Heading(verdict.declared.question, 2), *content.answer(verdict)]
    inside = "\n".join(map(blocks.html, page))
    return f'<style>\n{style(".heed")}</style>\n<div class="heed">\n{inside}\n</div>'


def text(verdict: Verdict) -> str:
    """The question, and the word of each contrast with what it rests on, as lines."""
    lines = [verdict.declared.question]
    for row in verdict.rows:
        lines.append(f"  {row.contrast.name}: {saying.word(row)}")
        lines += [f"    {sentence}" for sentence in (saying.basis(row, verdict), *row.sentences)]
    return "\n".join(map(blocks.plain, lines))
