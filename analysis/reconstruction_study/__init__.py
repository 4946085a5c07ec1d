"""The auto-encoder study: data, auto-encoders, the parts of the page, the page."""
