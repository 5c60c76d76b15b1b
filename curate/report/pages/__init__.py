"""What a report shows (content.py) → HTML, without files and without Ray."""
