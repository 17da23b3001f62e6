"""What the documents say of a record, as Markdown: a function of `Figures` for each section."""
