// Stands in for k6, so that Node.js can run one iteration of a script: prints each check's outcome.
export function check(value, checks) {
  for (const [name, holds] of Object.entries(checks)) console.log(`check ${name}: ${holds(value)}`);
}
