"""The recipes that ship with llmquant: data only; the code that reads them is `llmquant.recipe`."""
