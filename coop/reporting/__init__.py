"""What python -m coop.report is made of; nothing in here imports torch.

runs.py reads results.json files, cells.py averages over seeds, curves.py joins cells that belong together, published.py
holds them against the paper's figures, contents.py makes tables and the list of figures, tables.py and figures.py write
them, page.py puts report.md and report.html together.
"""
