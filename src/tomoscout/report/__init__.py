"""The report of a model: pictures, charts and one self-contained HTML page."""
