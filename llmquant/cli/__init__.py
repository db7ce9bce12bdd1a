"""The command line: `main` finds the verb, one file has each verb's arguments, its run and what it prints."""
