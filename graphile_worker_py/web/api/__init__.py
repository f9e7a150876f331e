"""The API under `/api/v1`: a router for each subject."""
