// Prints what a script counts.
class Metric {
  constructor(name) {
    this.name = name;
  }

  add(value) {
    console.log(`metric ${this.name}: ${value}`);
  }
}

export { Metric as Counter, Metric as Trend };
