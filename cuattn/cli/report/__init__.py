"""`cuattn report`: the command, its tables, plots and page."""
