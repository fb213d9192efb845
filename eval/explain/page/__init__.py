"""One file that shows all that is known of why a model answers what it does, opened by double click."""

from eval.explain.page.content import Content, Pair, Products, Table
from eval.explain.page.write import cell, write
