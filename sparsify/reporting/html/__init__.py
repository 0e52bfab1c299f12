"""A report as one HTML file: tables and plots for a browser, which fetches nothing.

`to_html` makes the page of a report, `profile_html` that of a sensitivity profile. `markup` escapes all
text, `plots` draws inline SVG, and `sections` fills the sections.
"""

from sparsify.reporting.html.document import PAGE, to_html
from sparsify.reporting.html.sensitivity_page import profile_html

__all__ = ["PAGE", "profile_html", "to_html"]
