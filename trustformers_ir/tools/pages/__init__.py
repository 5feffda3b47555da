"""Pages of ``docs/`` that are written from declarations; ``tools/docs.py`` lists them."""
