"""`helixflow serve [MODEL]`: reads the configuration and hands it to the composition root."""

from __future__ import annotations

import logging
from argparse import Namespace

from inference_server.cli.arguments import VerbParser, add_settings, flags_of
from inference_server.cli.configured import read_configuration
from inference_server.cli.display import progress_display, progress_log
from inference_server.cli.terminal import Terminal
from inference_server.config.catalog import Catalog
from inference_server.config.configuration import check_certificate
from inference_server.config.settings import changed_settings
from inference_server.errors import ConfigError

logger = logging.getLogger(__name__)
DESCRIPTION = """\
Serve models over an OpenAI-compatible HTTP interface until a signal ends it.

The models are those of models.yaml. With MODEL, that one is loaded at start and the others on demand;
settings about models (--dtype, --device …) then apply to MODEL, and to every model without it."""

EPILOG = """\
Every flag --some-name can also be set as HELIXFLOW_SOME_NAME, and most as `some_name` in the `server:`
section of models.yaml. A flag wins over the environment, and that over the file.
`helixflow check-config` takes the same flags and shows what they come to.

examples:
  helixflow serve                                  the models of ./models.yaml
  helixflow serve Qwen/Qwen3-0.6B --port 8080      one from the Hugging Face Hub
  helixflow serve ./my-model --device cpu          one from a folder"""


def add_arguments(parser: VerbParser) -> None:
    """All settings are flags."""
    parser.epilog = EPILOG
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a configured name, or a source such as org/name or ./folder",
    )
    add_settings(parser)


def run(args: Namespace, terminal: Terminal) -> int:
    """Serves; returns when the server has ended."""
    flags = flags_of(args)
    configuration = read_configuration(flags, terminal)
    if not configuration.catalog.models:
        raise ConfigError(
            "no model to serve: name one (helixflow serve org/name), or list some in ./models.yaml "
            "(or in the file that --config names)"
        )
    check_certificate(configuration)
    from inference_server.app import serve

    def read_again() -> Catalog:
        """The models as the configuration says now; settings take effect at the next start only."""
        now = read_configuration(flags, terminal)
        if changed := changed_settings(configuration.settings, now.settings):
            logger.warning("changed and not applied before a restart: %s", ", ".join(changed))
        return now.catalog

    return serve(
        configuration.settings,
        configuration.catalog,
        progress_log if configuration.settings.log_json else lambda: progress_display(terminal),
        read_again,
    )
