"""`python -m llmquant`."""

from llmquant.cli import main

raise SystemExit(main())
