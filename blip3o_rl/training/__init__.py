"""The glue to verl's trainer: launch, engine, CPU platform."""
