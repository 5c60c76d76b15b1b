"""`curate report`: a finished run as a folder of pages that opens anywhere, without a server."""
