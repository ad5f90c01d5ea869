"""Pages that are made from the code: manual pages, and the site's reference."""
