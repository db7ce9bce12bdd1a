"""Results of a run: units of work, the journal, the folder, and what lies in it once it is finished."""
