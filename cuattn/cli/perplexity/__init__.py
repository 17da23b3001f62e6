"""``cuattn perplexity``: what is asked, in `command`, and what was found, in `findings`."""
