// Reads a JSON list of custom resources from stdin and writes a JSON list of what is wrong with them to stdout.
// Lies in the folder of fetched tools when it runs, because that is where imports are looked up.
//
// The models are compiled from the projects' own definitions. As a cluster does, they let unknown fields pass,
// which would hide a misspelt one; so objects are watched, and a field that its validator never looked at is a fault.
import { HTTPRoute } from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1/HTTPRoute";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor";
import { PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";
import { readFileSync } from "node:fs";

const models = Object.fromEntries(
  [HTTPRoute, ScaledObject, PodMonitor, PrometheusRule, ServiceMonitor].map((model) => [
    `${model.apiVersion} ${model.kind}`,
    model,
  ]),
);

// A view of a value that notes which fields of which object are read.
function watched(value, path, reads) {
  if (value === null || typeof value !== "object") return value;
  const read = new Set();
  reads.push({ path, value, read });
  return new Proxy(value, {
    get(target, key) {
      if (typeof key === "string") read.add(key);
      return Object.hasOwn(target, key) ? watched(target[key], `${path}.${String(key)}`, reads) : target[key];
    },
  });
}

// An object of which no field was read is free-form: its validator names none.
function unknownFields(reads) {
  const readOf = new Map();
  for (const { path, value, read } of reads) {
    const all = readOf.get(path) ?? { value, read: new Set() };
    read.forEach((key) => all.read.add(key));
    readOf.set(path, all);
  }
  return [...readOf].flatMap(([path, { value, read }]) =>
    Array.isArray(value) || read.size === 0
      ? []
      : Object.keys(value).filter((key) => !read.has(key)).map((key) => `${path}.${key}`),
  );
}

function fault(object) {
  const name = `${object.kind} ${object.metadata?.name}`;
  const Model = models[`${object.apiVersion} ${object.kind}`];
  if (Model === undefined) return `${name}: no model of ${object.apiVersion}`;
  const reads = [];
  const model = new Model(object);
  model.spec = watched(object.spec, "spec", reads); // afterwards, because the constructor copies what it gets
  try {
    model.validate();
  } catch (error) {
    return `${name}: ${error.message}`;
  }
  const unknown = unknownFields(reads);
  return unknown.length ? `${name}: unknown fields ${unknown.join(", ")}` : null;
}

const faults = JSON.parse(readFileSync(0, "utf8")).map(fault);
process.stdout.write(JSON.stringify(faults.filter((text) => text !== null)));
