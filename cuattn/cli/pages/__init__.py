"""Pages of HTML for ``--html``: templates, pictures as SVG, names in pictures.

What the rooms `report` and `bench` share. May import what is not of the command line, and
`cuattn.cli.table`.
"""
