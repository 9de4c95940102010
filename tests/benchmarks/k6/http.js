// k6's http waits for the whole answer and returns it at once; curl does the same for Node.js.
import { execFileSync } from 'node:child_process';

function request(args) {
  const out = execFileSync('curl', ['--silent', '--write-out', '\n%{http_code} %{time_starttransfer} %{time_total}', ...args]);
  const text = out.toString();
  const end = text.lastIndexOf('\n');
  const [status, waiting_s, total_s] = text.slice(end + 1).split(' ').map(Number);
  const body = text.slice(0, end);
  return {
    status,
    body,
    timings: { waiting: waiting_s * 1000, receiving: (total_s - waiting_s) * 1000 },
    json: (path) => path.split('.').reduce((value, key) => value[key], JSON.parse(body)),
  };
}

const headers = (params) => Object.entries(params.headers).flatMap(([name, value]) => ['--header', `${name}: ${value}`]);

export default {
  get: (url, params) => request([url, ...headers(params)]),
  post: (url, body, params) => request([url, '--data', body, ...headers(params)]),
};
