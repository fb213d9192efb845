"""The page of a verdict: HTML, Markdown and CSV of the same blocks."""

from eval.verdict.page.shown import Curve, Shown
from eval.verdict.page.write import notebook_html, text, write_page
