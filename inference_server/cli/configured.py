"""Reads the configuration for a verb, sources included. It knows no verb."""

from __future__ import annotations

from collections.abc import Mapping

from inference_server.cli.terminal import Terminal
from inference_server.config.configuration import Configuration, load_configuration
from inference_server.errors import ConfigError


def read_configuration(flags: Mapping[str, object], terminal: Terminal) -> Configuration:
    """models.yaml, environment and flags, with every model's source understood.

    Raises:
        ConfigError: one line per problem.
    """
    configuration = load_configuration(env=terminal.env, flags=flags)
    _check_sources(configuration)
    return configuration


def _check_sources(configuration: Configuration) -> None:
    from inference_server.checkpoints.sources import parse_source

    problems = []
    for name, spec in configuration.catalog.models.items():
        try:
            parse_source(spec.source, spec.revision)
        except ConfigError as error:
            where = configuration.model_origins[name].get(error.param or "source", "models.yaml")
            problems.append(f"{where}: models.{name}: {error.message}")
    if problems:
        raise ConfigError("\n".join(problems))
