"""What python -m coop.report is made of; nothing in here imports torch.

runs.py reads results.json files, cells.py averages over seeds, curves.py joins cells that belong together, mixtures.py
warns of what does not, published.py reads the published figures; study.py puts these together. contents.py and
beside.py make tables of it, pictures.py figures, spreadsheets.py CSV files. tables.py and figures.py know how tables
and figures look; page.py writes the report.
"""
