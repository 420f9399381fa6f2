// For the conformance tests, which import `globSync` of Node.js 22 for a command that is not used here. It can go when
// package.json asks for Node.js 22.
import { register } from "node:module";

const url = (source) => `data:text/javascript,${encodeURIComponent(source)}`;
const fs = url('export * from "node:fs"; export { default } from "node:fs"; export function globSync() {}');
register(
  url(`export const resolve = (name, context, next) =>
    name === "fs" ? { url: ${JSON.stringify(fs)}, shortCircuit: true } : next(name, context);`),
);
