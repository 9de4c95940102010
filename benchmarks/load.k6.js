// A load for k6 (https://k6.io): streaming chats against any OpenAI-compatible server.
//
//   k6 run benchmarks/load.k6.js
//   k6 run -e BASE_URL=http://127.0.0.1:8000 -e STREAMS=16 -e DURATION=60s benchmarks/load.k6.js
//   k6 run -e RATE=4 benchmarks/load.k6.js            an open loop: four new chats per second
//
// Variables: BASE_URL, API_KEY, MODEL (default: the server's first), STREAMS (16), DURATION (30s), RATE (requests
// per second; without it the loop is closed), MAX_TOKENS (64), TTFB_P95_MS (5000).
//
// k6 shows a response only when it has ended, so the time to the first token is k6's http_req_waiting: the time to
// the first byte, which a server that sends headers before the first token answers early. `helixflow bench serve`
// measures tokens.

import http from 'k6/http';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';

const BASE_URL = (__ENV.BASE_URL || 'http://127.0.0.1:8000').replace(/\/+$/, '').replace(/\/v1$/, '');
const MAX_TOKENS = Number(__ENV.MAX_TOKENS || 64);
const STREAMS = Number(__ENV.STREAMS || 16);
const DURATION = __ENV.DURATION || '30s';
const RATE = Number(__ENV.RATE || 0);

const outputTokens = new Counter('output_tokens');
const millisecondsPerToken = new Trend('ms_per_output_token', true);

const closedLoop = { executor: 'constant-vus', vus: STREAMS, duration: DURATION, gracefulStop: '60s' };
const openLoop = {
  executor: 'constant-arrival-rate',
  rate: RATE,
  timeUnit: '1s',
  duration: DURATION,
  preAllocatedVUs: STREAMS,
  maxVUs: 50 * STREAMS,
  gracefulStop: '60s',
};

export const options = {
  scenarios: { chats: RATE > 0 ? openLoop : closedLoop },
  thresholds: {
    checks: ['rate==1.0'],
    http_req_failed: ['rate==0'],
    http_req_waiting: [`p(95)<${Number(__ENV.TTFB_P95_MS || 5000)}`],
  },
};

const WORDS = (
  'river stone market window garden letter engine captain silver morning winter bridge number island teacher ' +
  'music coffee shadow forest machine story village doctor paper ocean yellow planet signal basket harbor'
).split(' ');

const HEADERS = { 'Content-Type': 'application/json' };
if (__ENV.API_KEY) HEADERS.Authorization = `Bearer ${__ENV.API_KEY}`;

// About 150 tokens; the label comes first, so that no two requests share a prefix.
function prompt() {
  const words = Array.from({ length: 100 }, () => WORDS[Math.floor(Math.random() * WORDS.length)]);
  return `[${__VU}.${__ITER}.${Math.random()}] Write a long story using these words: ${words.join(' ')}`;
}

export function setup() {
  if (__ENV.MODEL) return { model: __ENV.MODEL };
  const response = http.get(`${BASE_URL}/v1/models`, { headers: HEADERS });
  if (response.status !== 200) throw new Error(`${BASE_URL}/v1/models answered with ${response.status}`);
  return { model: response.json('data.0.id') };
}

export default function chat(data) {
  const body = {
    model: data.model,
    messages: [{ role: 'user', content: prompt() }],
    max_tokens: MAX_TOKENS,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  };
  const response = http.post(`${BASE_URL}/v1/chat/completions`, JSON.stringify(body), {
    headers: HEADERS,
    timeout: '600s',
  });
  const usage = usageOf(response.body || '');
  check(response, {
    'status is 200': (r) => r.status === 200,
    'stream is complete': (r) => (r.body || '').includes('data: [DONE]'),
    'tokens came': () => usage !== null && usage.completion_tokens > 0,
  });
  if (usage !== null && usage.completion_tokens > 0) {
    outputTokens.add(usage.completion_tokens);
    millisecondsPerToken.add(response.timings.receiving / usage.completion_tokens);
  }
}

// The usage object of the last chunk that has one; null if none has.
function usageOf(stream) {
  let usage = null;
  for (const line of stream.split('\n')) {
    if (!line.startsWith('data: {')) continue;
    const chunk = JSON.parse(line.slice('data: '.length));
    if (chunk.usage) usage = chunk.usage;
  }
  return usage;
}
