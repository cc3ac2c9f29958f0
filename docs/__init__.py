"""The site: pages in Markdown, and the code that runs them and makes the reference of docstrings."""
