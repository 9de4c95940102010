#!/bin/sh
# Measures a server with HelixFlow's own load, ab and k6 where they are installed, and leaves performance-report/report.html.
#
#   ./scripts/run-performance-test.sh                                      a server of its own with ./models.yaml
#   ./scripts/run-performance-test.sh --base-url http://127.0.0.1:8000     a running one (key: HELIXFLOW_API_KEY)
#   ./scripts/run-performance-test.sh --help                               everything else
#
# PYTHON names the interpreter; default: .venv/bin/python, which `make install` makes.
set -eu
repository=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$repository/.venv/bin/python}
if ! command -v "$python" >/dev/null 2>&1; then
    echo "error: there is no $python; run make install, or set PYTHON" >&2
    exit 2
fi
PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m benchmarks.performance "$@"
