"""Users' own files: import, inspection and verification."""
