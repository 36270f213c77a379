"""One run, from its plan to its summary: what it resumes, computes, saves and shows."""
