"""A report as one HTML file: tables and plots for a browser, which fetches nothing.

`to_html` is the page; `markup` escapes whatever it is given, `plots` draws inline SVG, `sections` says what stands where.
"""

from sparsify.page.document import to_html

__all__ = ["to_html"]
