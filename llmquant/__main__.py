"""`python -m llmquant`."""

from llmquant.cli.main import main

raise SystemExit(main())
