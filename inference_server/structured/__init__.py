"""What an answer must look like: schemas and grammars. Needs neither torch nor a model."""
