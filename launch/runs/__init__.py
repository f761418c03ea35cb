"""What runs did, from the files that they left: read, summarized, reported, compared. Needs no torch and no NeMo."""
