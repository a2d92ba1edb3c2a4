"""From snapshot to score: the HTTP worker."""
