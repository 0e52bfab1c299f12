"""A report as one HTML file: tables and plots for a browser, which fetches nothing.

`to_html` is the page, `profile_html` that of a profile; `markup` escapes whatever it is given, `plots` draws inline SVG, `sections` says what stands where.
"""

from sparsify.reporting.html.document import to_html
from sparsify.reporting.html.sensitivity_page import profile_html

__all__ = ["profile_html", "to_html"]
